"""A screen that nobody sees, and the hand that points and types on it: Xvfb and xdotool."""

import os
import subprocess
import time
from typing import Any

from PIL import Image, ImageGrab

from tests.integration.partners import find_program

SIZE = (1400, 1000)


class Screen:
    """An X server of its own."""

    def __init__(self) -> None:
        read, write = os.pipe()
        width, height = SIZE
        self.process = subprocess.Popen(
            [
                find_program("Xvfb") or "Xvfb", "-displayfd", str(write), "-nolisten", "tcp",
                "-screen", "0", f"{width}x{height}x24",
            ],
            pass_fds=[write],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(write)
        with os.fdopen(read) as number:
            self.display = f":{number.readline().strip()}"

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to know to draw here."""
        return {**os.environ, "DISPLAY": self.display}

    def picture(self) -> Image.Image:
        """Return what is to be seen now."""
        return ImageGrab.grab(xdisplay=self.display).convert("RGB")

    def settled(self, seconds: float = 60) -> Image.Image:
        """Return what is to be seen once nothing has changed for a second."""
        end, last = time.monotonic() + seconds, self.picture()
        while time.monotonic() < end:
            time.sleep(1)
            now = self.picture()
            if now.tobytes() == last.tobytes():
                return now
            last = now
        raise AssertionError(f"the screen does not come to rest within {seconds:g} s")

    def click(self, place: tuple[int, int], *, double: bool = False) -> Image.Image:
        """Click at a place and return what is to be seen afterwards."""
        twice = ["--repeat", "2", "--delay", "80"] if double else []
        self._act("mousemove", *place, "click", *twice, 1)
        return self.settled()

    def type(self, *keys: str) -> Image.Image:
        """Press keys, one after the other, and return what is to be seen afterwards."""
        self._act("key", "--delay", 150, *keys)
        return self.settled()

    def close(self) -> None:
        """End the server."""
        self.process.terminate()
        self.process.wait(20)

    def _act(self, *words: Any) -> None:
        command = [find_program("xdotool") or "xdotool", *map(str, words)]
        subprocess.run(command, check=True, env=self.environment, timeout=60)
