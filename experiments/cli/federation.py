"""The commands ``airllm federation``: a deployment to try out, on this machine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.options import Interrupted, out_option

federation_app = typer.Typer(
    no_args_is_help=True,
    help="A SuperLink and SuperNodes on this machine, to try out --runtime deployment.",
)
DEFAULT_FOLDER = Path("runs/federation")
Folder = Annotated[Path, out_option("Folder of its certificates, keys and logs.")]


@federation_app.command()
def up(
    devices: Annotated[int, typer.Option("--devices", help="Number of SuperNodes.")] = 2,
    out: Folder = DEFAULT_FOLDER,
    port: Annotated[
        int, typer.Option("--port", help="Of the SuperLink, on 127.0.0.1; 0: any free one.")
    ] = 0,
) -> None:
    """Start it with TLS and node authentication, and wait; Ctrl-C takes everything down again.

    Whoever can reach the port from this machine may run code as you while it is up.
    """
    from experiments.runtimes.federation import Federation
    from experiments.runtimes.flower_env import grpc_proxy

    federation = Federation(out)
    link = federation.up(devices, port=port)
    # What we start ourselves is told so already.
    past = "no_proxy=127.0.0.1 " if grpc_proxy(os.environ) else ""
    try:
        typer.echo(
            f"{devices} SuperNodes are connected to the SuperLink at {link.address}. Use it with\n"
            f"\n  airllm run quick --runtime deployment --superlink {out} "
            f"--set num_devices={devices}\n"
            f"  {past}FLWR_HOME={link.home} flwr run . {link.connection}\n\n"
            f"Logs are in {out}. Ctrl-C ends it."
        )
        while True:
            for name in federation.ended():
                log = out / f"{name}.log"
                if name == "superlink":
                    raise ValueError(f"the SuperLink has ended; {log} may say why")
                typer.echo(f"{name} has ended; {log} may say why", err=True)
            time.sleep(0.5)
    except KeyboardInterrupt:
        raise Interrupted("the federation is down") from None
    finally:
        # Impatience must not leave half of it running.
        before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)}
        federation.down()
        for number, handler in before.items():
            signal.signal(number, handler)


@federation_app.command()
def status(out: Folder = DEFAULT_FOLDER) -> None:
    """Say how many SuperNodes are connected."""
    from experiments.runtimes.federation import Federation
    from experiments.runtimes.superlink import SuperLink

    expected = Federation(out).about()["devices"]
    link = SuperLink.find(str(out))
    typer.echo(f"{link.nodes_online()} of {expected} SuperNodes are connected to {link.address}")


@federation_app.command()
def down(out: Folder = DEFAULT_FOLDER) -> None:
    """End whatever is left of it, where its terminal is gone."""
    from experiments.runtimes.federation import Federation

    typer.echo(f"{Federation(out).down()} processes ended")
