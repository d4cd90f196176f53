"""Serves a model as the OpenAI API has it: `python -m flanjax.serve --model=DIR`.

The model is a run directory or whatever `flanjax.load` opens. Any client of that API asks it:

    openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none").completions.create(model="DIR", prompt="Hi")

The server is there at once and says 503 until the model is; GET /health is 200 from then on.
"""

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from flanjax import doors
from flanjax.serving.errors import ServingError

API_KEY = "FLANJAX_API_KEY"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flanjax.serve", description="Serves a model as the OpenAI completions and chat API has it."
    )
    doors.add_model_flags(parser)
    parser.add_argument("--name", metavar="NAME", help="of the model in requests (default: the folder's)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 for a free one (default: 8000)")
    parser.add_argument(
        "--api_key_file", metavar="FILE", help=f"its first line is the key that requests bring (or set ${API_KEY})"
    )
    parser.add_argument("--api_key", metavar="KEY", help="likewise, but lists of processes show it")
    parser.add_argument("--slots", type=int, default=16, metavar="N", help="answers decoded together (default: 16)")
    parser.add_argument(
        "--max_queue", type=int, default=256, metavar="N", help="answers that may wait; more get 429 (default: 256)"
    )
    parser.add_argument(
        "--max_length", type=int, metavar="N", help="tokens of a prompt and its answer (default: the model's positions)"
    )
    parser.add_argument(
        "--max_body", type=int, default=4 << 20, metavar="N", help="bytes of a request (default: 4 MiB)"
    )
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds for a request (default: 600)")
    parser.add_argument("--grace", type=float, default=30, metavar="S", help="seconds to end in (default: 30)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The door: flags in, one call; returns the exit status."""
    flags = _parser().parse_args(argv)
    return doors.run_door(lambda: _main(flags))


def _main(flags: argparse.Namespace) -> int:
    settings_key = _api_key(flags)
    listening = _listen(flags.host, flags.port)

    import asyncio

    from flanjax.console import Console
    from flanjax.loading import load
    from flanjax.serving.server import serve
    from flanjax.serving.service import Service, Settings

    settings = Settings(
        name=flags.name or Path(flags.model).resolve().name,
        api_key=settings_key,
        slots=flags.slots,
        max_queue=flags.max_queue,
        max_length=flags.max_length,
        max_body=flags.max_body,
        timeout=flags.timeout,
    )
    mesh = doors.mesh_of(flags)
    service = Service(lambda: load(flags.model, step=flags.step, adapter=flags.adapter, mesh=mesh), settings)
    with Console() as console:
        address = _address(listening)
        if settings.api_key is None and not _is_loopback(listening):
            console.notice(f"{address} is open to others, and asks for no key: set ${API_KEY}")
        console.line(f"opening {flags.model}")

        def ready() -> None:
            console.line(f"serving {', '.join(service.reader.names)} at {address}/v1")

        asyncio.run(serve(service, listening, grace=flags.grace, on_ready=ready))
        console.line("ended")
    return 0


def _api_key(flags: argparse.Namespace) -> str | None:
    """The key of the file, the flag or the environment; None where none asks for one."""
    if flags.api_key is not None and flags.api_key_file is not None:
        raise ServingError("--api_key and --api_key_file are both given: keep the file")
    key, place = os.environ.get(API_KEY), f"${API_KEY}"
    if flags.api_key is not None:
        key, place = flags.api_key, "--api_key"
    if flags.api_key_file is not None:
        place = f"--api_key_file={flags.api_key_file}"
        try:
            key = Path(flags.api_key_file).read_text().partition("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ServingError(f"{place}: cannot be read: {error}") from error
    if key == "":
        raise ServingError(f"{place} is an empty key, which anybody would have: write one, or leave it out")
    return key


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ServingError(f"cannot listen at {host}, port {port} ({error}): give another --host or --port") from error


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(listening: socket.socket) -> bool:
    import ipaddress

    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


if __name__ == "__main__":
    sys.exit(main())
