"""Training by TRL and PEFT: records in, a merged checkpoint out.

Every training starts from a *merged* checkpoint and ends in one, so the reference policy of DPO
("adapters off") is exactly the policy that training starts from, never an older base model. Rows
that are too long are left out and counted: nothing is ever truncated, so no image token is lost.
Weights are written as safetensors.
"""

from selfcal.policy import prompt_text
from selfcal.train.common import Run, Trained, TrainingError
from selfcal.train.judge import train_grader, train_judge, train_ranker
from selfcal.train.online import Graded, Grading, Group, Ledger, grpo
from selfcal.train.policy import dpo, sft

__all__ = [
    "Graded", "Grading", "Group", "Ledger", "Run", "Trained", "TrainingError", "dpo", "grpo",
    "prompt_text", "sft", "train_grader", "train_judge", "train_ranker",
]  # fmt: skip
