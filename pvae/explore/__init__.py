"""A run as one page that decodes in the browser.

`page` says what it holds, and `networks` what it holds of its VAE. network.js computes, in part by the
WebAssembly of kernel.wat; train.js trains a VAE; page.js shows images, and table.js rows of a table, of which
rules.js computes the columns that rules rewrite.
"""
