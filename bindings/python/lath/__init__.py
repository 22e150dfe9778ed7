# SPDX-License-Identifier: Apache-2.0
"""lath: PyTorch layers with thin weights, on operators in plain C.

Importing the package loads the operators into ``torch.ops.lath``::

    import lath

    report = lath.convert(model, lath.LowRank(ratio=0.2))   # linear, convolution, attention, LSTM -> thin, in place
    print(report)
    ...                                                      # train as before, with a new optimizer
    lath.restore(model)                                      # back to the dense layers, weights merged
"""

from . import _cuda, _load
from ._version import __version__

LIBRARY = _load.load()
_cuda.start(LIBRARY)

from . import (  # noqa: E402, F401  (these need the operators)
    _conv_cuda,
    _fake,
    nn,
    ops,
    optimizer_state,
)
from .controller import OIALRController  # noqa: E402
from .convert import convert, dense_state_dict, oialr_to_lowrank, restore  # noqa: E402
from .decay import (  # noqa: E402
    FrobeniusDecay,
    decay_groups,
    frobenius_decay,
    kronecker_decay,
    l2_decay,
    mixed_decay,
)
from .freeze import freeze, unfreeze  # noqa: E402
from .info import info  # noqa: E402
from .neighbours import (  # noqa: E402
    AfterEpochs,
    AfterSteps,
    RankSwitch,
    StableRank,
    WarmupThenFactor,
    cuttlefish,
    profile_blocks,
    pufferfish,
    spectral_frobenius,
    stable_rank,
    stable_ranks,
)
from .nn.cored import oialr_cores  # noqa: E402
from .report import LayerReport, Report, report  # noqa: E402
from .rules import decom_rule  # noqa: E402
from .specs import OIALR, LowRank  # noqa: E402
from .spectral import ranks_for_budget, singular_values, spectral_init  # noqa: E402

__all__ = [
    "LIBRARY",
    "OIALR",
    "AfterEpochs",
    "AfterSteps",
    "FrobeniusDecay",
    "LayerReport",
    "LowRank",
    "OIALRController",
    "RankSwitch",
    "Report",
    "StableRank",
    "WarmupThenFactor",
    "__version__",
    "convert",
    "cuttlefish",
    "decay_groups",
    "decom_rule",
    "dense_state_dict",
    "freeze",
    "frobenius_decay",
    "info",
    "kronecker_decay",
    "l2_decay",
    "mixed_decay",
    "nn",
    "oialr_cores",
    "oialr_to_lowrank",
    "ops",
    "optimizer_state",
    "profile_blocks",
    "pufferfish",
    "ranks_for_budget",
    "report",
    "restore",
    "singular_values",
    "spectral_frobenius",
    "spectral_init",
    "stable_rank",
    "stable_ranks",
    "unfreeze",
]
