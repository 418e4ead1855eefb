"""How many threads a step should have: as many as there are cores that other processes leave free.

The threads of a product wait for the slowest, and one that shares its core with another process holds up all of them.
So the engine looks now and then at what others have used of its cores, and keeps to the rest.
"""

from __future__ import annotations

import time

import psutil

from danlu.container import own_cores

# So often it is looked at: the system counts in hundredths of a second.
LOOK_SECONDS = 0.5
BRIEF_SECONDS = 0.05
# A thread is given up where others have used more than this of a core, and taken back where they use less.
MUCH, LITTLE = 0.4, 0.2


class Neighbours:
    """What others use of the cores that this process may use.

    Args:
        most: threads where nobody else is busy.

    Attributes:
        threads: how many the next step should have.
    """

    def __init__(self, most: int) -> None:
        self._most = self.threads = most
        self._cores = len(own_cores())
        self._seen = _used(), time.process_time(), time.monotonic()

    def look(self, *, after_rest: bool = False, is_long: bool = False) -> bool:
        """Whether `threads` changed, where it is time to look again.

        Args:
            after_rest: the engine had nothing to do before; what others did then says little of now.
            is_long: the next step takes much longer than BRIEF_SECONDS. After a rest, where threads were given up, so
                long is waited to see who is there.
        """
        if self._most == 1:
            return False
        passed, has_fewer = time.monotonic() - self._seen[2], self.threads < self._most
        if after_rest and (passed > 2 * LOOK_SECONDS or (is_long and has_fewer)):
            self._seen = _used(), time.process_time(), time.monotonic()
            if not (is_long and has_fewer):
                return False
            time.sleep(BRIEF_SECONDS)
        elif passed < LOOK_SECONDS:
            return False
        used, own, now = _used(), time.process_time(), time.monotonic()
        others = max(0.0, used - self._seen[0] - (own - self._seen[1])) / (now - self._seen[2])
        self._seen = used, own, now
        before, self.threads = self.threads, threads_beside(others, self.threads, self._cores, self._most)
        return before != self.threads


def threads_beside(others: float, threads: int, cores: int, most: int) -> int:
    """How many to have where there are `threads` now, and others use so many of the cores."""
    fewer, more = int(cores - others + MUCH), int(cores - others + LITTLE)
    return max(1, min(most, fewer if fewer < threads else max(more, threads)))


def _used() -> float:
    """Seconds that this process's cores have worked, but for whoever is nice about it."""
    times = psutil.cpu_times(percpu=True)
    own = [times[core] for core in own_cores() if core < len(times)]
    return sum(
        one.user + one.system + sum(getattr(one, name, 0.0) for name in ("irq", "softirq", "steal")) for one in own
    )
