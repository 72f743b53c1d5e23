"""``python -m experiments`` is ``airllm``."""

from experiments.cli import main

main()
