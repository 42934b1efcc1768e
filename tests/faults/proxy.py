"""A TCP proxy on loopback that cuts, delays, drips and swallows what passes: a bad network."""

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

CHUNK_BYTES = 16384
ANYWHERE_BYTES = 60_000  # a fault comes after up to so many bytes: somewhere in a small series


@dataclass(frozen=True, kw_only=True)
class Weather:
    """What happens to a connection."""

    ends: bool = False  # it is closed after a random number of bytes
    reset: bool = False  # and by a reset rather than in order
    at_once: bool = False  # nothing passes before that
    swallows: bool = False  # from then on the caller hears nothing any more; what it says arrives
    silent: bool = False  # from then on nothing passes, in either direction
    chunk_bytes: int = CHUNK_BYTES
    delay_s: float = 0.0  # before each chunk


FINE = Weather()
WEATHERS = {
    "refused": Weather(ends=True, reset=True, at_once=True),
    "cut": Weather(ends=True),
    "reset": Weather(ends=True, reset=True),
    "replies lost": Weather(swallows=True),
    "half-dead from the start": Weather(swallows=True, at_once=True),
    "dead and open": Weather(silent=True),
    "slow": Weather(delay_s=0.05, chunk_bytes=4096),
    "dripping": Weather(delay_s=0.005, chunk_bytes=97),
}


class Proxy:
    """Passes connections on to a port of this machine, in the weather of the moment."""

    def __init__(self, target: int, seed: int = 1) -> None:
        self.target = target
        self.weather = FINE
        self.hit: Counter[str] = Counter()  # connections by the name of what befell them
        self._name = ""
        self._random = random.Random(seed)
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, name: str) -> None:
        """Let the weather of that name begin, for new connections and for those that are open."""
        self._name, self.weather = name, WEATHERS[name]

    def clear(self) -> None:
        """Let it be fine again; connections that are spoiled already are closed."""
        self._name, self.weather = "", FINE
        for one in list(self._open):
            shut(one)

    def close(self) -> None:
        """End every connection and stop listening."""
        shut(self._listener)
        self.clear()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        try:
            called = socket.create_connection(("127.0.0.1", self.target), timeout=10)
        except OSError:
            hard_close(caller)
            return
        called.settimeout(None)
        self._open |= {caller, called}
        budget = Budget(self._random.randint(0, ANYWHERE_BYTES))
        pumps = [
            threading.Thread(target=self._pump, args=(caller, called, budget, False), daemon=True),
            threading.Thread(target=self._pump, args=(called, caller, budget, True), daemon=True),
        ]
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        for one in (caller, called):
            self._open.discard(one)
            one.close()

    def _pump(
        self, source: socket.socket, sink: socket.socket, budget: "Budget", reply: bool
    ) -> None:
        try:
            while data := source.recv(CHUNK_BYTES):
                if not self._pass(data, source, sink, budget, reply):
                    return
        except OSError:
            pass
        finally:
            shut(sink)

    def _pass(
        self,
        data: bytes,
        source: socket.socket,
        sink: socket.socket,
        budget: "Budget",
        reply: bool,
    ) -> bool:
        """Pass `data` on as the weather allows; False when the connection has ended."""
        while data:
            weather = self.weather
            piece, data = data[: weather.chunk_bytes], data[weather.chunk_bytes :]
            if weather is FINE:
                sink.sendall(piece)
                continue
            due = budget.spend(len(piece), all_of_it=weather.at_once)
            if due or weather.delay_s:
                budget.once(lambda: self.hit.update([self._name]))
            if due and weather.ends:
                for one in (source, sink):
                    hard_close(one) if weather.reset else shut(one)
                return False
            if due and (weather.silent or (weather.swallows and reply)):
                continue
            time.sleep(weather.delay_s)
            sink.sendall(piece)
        return True


class Budget:
    """How many bytes may still pass over a connection before its fault begins."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._hit = False
        self._lock = threading.Lock()

    def spend(self, count: int, *, all_of_it: bool) -> bool:
        """Return whether the bytes are used up."""
        with self._lock:
            self._left = -1 if all_of_it else self._left - count
            return self._left < 0

    def once(self, act: Callable[[], None]) -> None:
        """Call `act` the first time."""
        with self._lock:
            first, self._hit = not self._hit, True
        if first:
            act()


def shut(one: socket.socket) -> None:
    """End a connection in order, whoever reads from it."""
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def hard_close(one: socket.socket) -> None:
    """End a connection by a reset."""
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.shutdown(socket.SHUT_RD)
        one.close()
    except OSError:
        pass
