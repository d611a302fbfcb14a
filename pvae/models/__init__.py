"""Priors, posteriors, likelihoods, networks and hierarchies: from a configuration to a VAE.

`pvae.VAE(p_z, q_z, p_x)` takes one module of each kind, or a module of your own:

    priors       p(z), and hierarchy.HierarchyPrior of several layers
    posteriors   q(z | x), and of several layers BottomUpPosterior, TopDownPosterior and LadderPosterior in hierarchy
    likelihoods  p(x | z)
    labels       the same given labels, or with a label as a latent
    networks     encoders and decoders for them; features, what an encoder sees of x

`pvae.config.build.build_vae` makes them of a configuration.
"""
