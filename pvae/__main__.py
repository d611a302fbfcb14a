"""`python -m pvae`: list the commands."""

from .cli.command import exit_process

_COMMANDS = """\
python -m pvae.COMMAND --help explains each command, with examples:

  train        train a VAE, on digits or on images of your own: into a run folder
  evaluate     the ELBO, log p(x), rate and codes of one run or of several
  draw         pictures of a run, or of several runs side by side
  explore      a run as one page that decodes under the pointer, in any browser
  compare      estimators of the bound and of its gradient, at the weights of a run
  encode       codes of images
  score        the likelihood of each image, and the oddest images
  sample       new images
  reconstruct  images encoded and decoded
  export       a VAE as one file of plain torch, or encoder and decoder as ONNX
  identify     which ELBO a loss of your own is, or why it is none"""

if __name__ == "__main__":
    print(_COMMANDS)
    exit_process(0)
