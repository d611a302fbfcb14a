"""Priors, posteriors, likelihoods, networks and hierarchies: from a configuration to a VAE.

`pvae.VAE(p_z, q_z, p_x)` takes one module of each kind, or a module of your own:

    priors       StandardNormalPrior, MixturePrior, VampPrior, FlowPrior, SpherePrior, FlatPrior
    posteriors   NormalPosterior, FullNormalPosterior, PlanarPosterior, IAFPosterior (also with splines),
                 PowerSphericalPosterior, DeltaPosterior
    hierarchy    HierarchyPrior, and BottomUpPosterior, TopDownPosterior or LadderPosterior
    likelihoods  BernoulliLikelihood, PseudoBernoulliLikelihood, ContinuousBernoulliLikelihood, NormalLikelihood,
                 LinearNormalLikelihood, LearnedNormalLikelihood, OptimalNormalLikelihood, DiscretizedLogisticLikelihood
    networks     encoders and decoders for them: mlp_encoder, conv_encoder, groupnorm_encoder, ...
"""
