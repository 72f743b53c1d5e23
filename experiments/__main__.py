"""``python -m experiments`` is ``airllm``."""

from experiments.cli.main import main

main()
