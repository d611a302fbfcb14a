"""A run as one page that decodes in the browser: `page` says what it holds, network.js computes, page.js shows."""
