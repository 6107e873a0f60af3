"""selfcal: vision-language models that give right answers for right reasons."""

__version__ = "0.1.0"
