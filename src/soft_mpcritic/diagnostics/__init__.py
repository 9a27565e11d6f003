"""Where the value goes wrong: critic, target solves, kept plans and models, each against a truth that can be had.

Truths are the episodes that the deterministic controller played, and solves that spend far more than training can. No
random numbers of the training are touched: what is looked at follows from constants of this module.

The value is soft. V and so Q hold, beside the rewards, the price of control: minus lambda times the discounted
divergence of the sampled actions from the prior. A return holds no such price, and is earned by the plans' means
instead of by samples. So Q minus return need not be 0 when all is learned.
"""

from soft_mpcritic.diagnostics.figures import DIAGNOSTIC_NAMES, Diagnosis, DiagnosticMetrics, reliability, summarize
from soft_mpcritic.diagnostics.inspection import REPORT_EFFORT, Diagnostics, Effort
from soft_mpcritic.diagnostics.models import ModelErrors
from soft_mpcritic.diagnostics.solves import SolveSample
from soft_mpcritic.diagnostics.values import ValueSample

__all__ = [
    "DIAGNOSTIC_NAMES",
    "REPORT_EFFORT",
    "Diagnosis",
    "DiagnosticMetrics",
    "Diagnostics",
    "Effort",
    "ModelErrors",
    "SolveSample",
    "ValueSample",
    "reliability",
    "summarize",
]
