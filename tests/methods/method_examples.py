"""Settings of every registered method that take its ways between them, and those that whole runs are made of."""

from referenced import Listed, Referenced

from ted_stream.methods import (
    RCAP,
    TED,
    UCB,
    Composed,
    DynamicDUAL,
    EpsilonGreedy,
    ImportanceSampling,
    InfoBatch,
    Method,
    OrderDP,
    RandomPruning,
    RePB,
    SeTa,
)

EXAMPLES: dict[str, tuple[Method, ...]] = {
    "composed": (
        Composed(0.6, class_shares="sqrt", choice="even", weights="inverse_probability", floor=0.2),
        Composed(0.6, clip_chance=True, floor=0.1, weights="inverse_probability", schedule="constant"),
        Composed(0.5, importance="true_probability", score="uncertainty", choice="highest", class_shares="equal"),
        Composed(0.5, importance="error_norm", score="deviation", choice="even", clip_quantile=0.9),
        Composed(0.5, importance="mask_gradient", norm=1, site="output", relative=True, weights="keep_ratio"),
        Composed(0.5, importance="margin", choice="lowest", class_shares="as_they_are", annealing=0.0),
        Composed(0.5, class_shares="by_loss", temperature=2.0),
    ),
    "dynamic_dual": (DynamicDUAL(0.6), DynamicDUAL(0.5, choice="highest", alpha=0.2), DynamicDUAL(0.4, floor=0.3)),
    "epsilon_greedy": (
        EpsilonGreedy(0.6),
        EpsilonGreedy(0.5, epsilon=0.4, alpha=0.0, schedule="constant", annealing=0.0),
        EpsilonGreedy(0.3, epsilon=1.0),
    ),
    "fixed_subset": (Listed("none.parquet"), Listed("none.parquet", apply_weights=False)),
    "importance_sampling": (
        ImportanceSampling(0.6),
        ImportanceSampling(0.5, importance="loss", schedule="constant", alpha=0.0, floor=1e-3),
        ImportanceSampling(0.3, importance="mask_gradient", schedule="cosine", annealing=0.0, floor=2.0),
    ),
    "infobatch": (InfoBatch(0.5), InfoBatch(0.7, annealing=0.0), InfoBatch(0.0)),
    "learnability": (
        Referenced(0.6, reference="none.parquet"),
        Referenced(0.5, reference="none.parquet", choice="sampled", temperature=0.5, alpha=0.5),
    ),
    "order_dp": (
        OrderDP(0.6),
        OrderDP(0.3625, pool=0.75),
        OrderDP(0.7, pool=0.3, schedule="roller-coaster", annealing=0.2),
        OrderDP(0.5, pool=1.0),
    ),
    "random": (
        RandomPruning(0.6),
        RandomPruning(0.5, schedule="constant", annealing=0.0, loss_correction=False),
        RandomPruning(0.5, coverage="even"),
        RandomPruning(0.5, coverage="even", class_shares="equal"),
        RandomPruning(0.5, class_shares="sqrt", schedule="constant"),
        RandomPruning(0.5, class_shares="as_they_are"),
    ),
    "rcap": (RCAP(0.6), RCAP(0.5, temperature=0.2, schedule="constant", annealing=0.0)),
    "repb": (RePB(0.5), RePB(0.9, window=2, annealing=0.0), RePB(0.0, window=1)),
    "seta": (
        SeTa(0.3),
        SeTa(0.1, groups=5, window_share=0.9, annealing=0.0),
        SeTa(0.0, groups=3, window_share=0.2),
        SeTa(0.6, groups=1, window_share=1.0),
    ),
    "ted": (
        TED(0.6),
        TED(0.6, choice="sampled", floor=0.1, relative=True, temperature=2.0, beta=0.3, site="output"),
        TED(0.9, importance="loss", schedule="linear", alpha=0.5, annealing=0.3),
        TED(0.6, choice="lowest"),
    ),
    "ucb": (UCB(0.6), UCB(0.5, c=4.0, alpha=0.0, schedule="constant", annealing=0.0), UCB(0.3, c=0, alpha=0.5)),
}
# Of whole runs: the first settings of each, and a choice that none of those makes.
RUN = {name: examples[0] for name, examples in EXAMPLES.items()}
RUN["ted_sampled"] = TED(0.6, choice="sampled", relative=True)
