"""The commands that keep running: serve, work, demo."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TextIO

from dicom_node import heaps
from dicom_node.cli.output import settings_of
from dicom_node.settings import Settings

NICE = 10  # receiving goes before computing


def serve(arguments: argparse.Namespace) -> None:
    """Run the node until SIGTERM."""
    from dicom_node.service import serve

    heaps.share()
    if arguments.managed:
        watch_parent(sys.stdin, lambda: os.kill(os.getpid(), signal.SIGTERM))
    settings = settings_of(arguments)
    if arguments.shadow:
        settings = settings_of(arguments, sending__shadow="true")
    serve(settings, arguments.workers, say=lambda line: print(line, flush=True))


def work(arguments: argparse.Namespace) -> None:
    """Run one worker until SIGTERM, which lets its job finish within node.drain_s."""
    from dicom_node.store import open_store
    from dicom_node.worker import Worker
    from dicom_node.worker.watch import Shutdown

    settings = managed_settings(sys.stdin) if arguments.managed else own_settings(arguments)
    shutdown = Shutdown()

    def on_signal(number: int, frame: object) -> None:
        shutdown.request(0.0 if shutdown.requested else settings.node.drain_s)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    store = open_store(settings.database_url)
    try:
        Worker(settings, store, shutdown=shutdown).run()
    finally:
        store.close()


def own_settings(arguments: argparse.Namespace) -> Settings:
    """Return the settings of a worker that a person or systemd started."""
    device = {"engine__device": arguments.device} if arguments.device else {}
    return settings_of(arguments, **device)


def managed_settings(source: TextIO) -> Settings:
    """Return the settings that the service wrote into our standard input; end when it closes."""
    settings = Settings.model_validate_json(source.readline())
    os.nice(NICE)
    # At once: the service is gone, and the next one gives our job to another worker.
    watch_parent(source, lambda: os._exit(0))
    return settings


def watch_parent(source: TextIO, gone: Callable[[], None]) -> None:
    """Call `gone` when `source`, which our parent holds open as long as it lives, has ended."""

    def watch() -> None:
        source.read()
        gone()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def demo(arguments: argparse.Namespace) -> None:
    """Send one series through a whole node."""
    from dicom_node.demo import run

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    run(
        settings_of(arguments),
        series=arguments.series,
        out=arguments.out,
        keep_serving=arguments.keep_serving,
    )
