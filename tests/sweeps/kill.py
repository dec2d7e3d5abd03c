"""SIGKILL at random moments of each job: what is at a final name is whole, a training or a map goes on to the same."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.tally import Count, moments
from tests.trials import Bench, digests, kill_after, old_outputs, whole_outputs

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 200
# A training, or a map, goes on after each kill, and after so many of them it may end.
KILLS = 5


def interrupted(bench: Bench, name: str, count: int, found: Count) -> None:
    """Kills a job, and runs it once more: then nothing may be left of the first."""
    for number, moment in enumerate(moments(count, bench.seconds[name], seed=len(name))):
        old = old_outputs(bench, name, there=bool(number % 2))
        ended = bench.run(bench.jobs[name], kill_after(moment))
        found.add(f"{name}: {ended.words}", bench.faults(name, ended, old))
        if number % 10 == 9:
            again = bench.run(bench.jobs[name])
            wrong = bench.faults(name, again, whole_outputs(bench.out))
            found.add(f"{name} again: {again.words}", wrong)


def resumed(bench: Bench, count: int, found: Count) -> None:
    """Kills a training again and again; in the end it has made the package that it makes at once."""
    bench.clear()
    for number, moment in enumerate(moments(count, bench.seconds["fit"], seed=1)):
        ended = bench.run(bench.jobs["fit"], kill_after(moment))
        wrong = bench.faults("fit", ended, {})
        found.add(f"fit: {ended.words}", wrong)
        if number % KILLS == KILLS - 1:
            ended = bench.run(bench.jobs["fit"])
            went_on = any("Goes on from step" in event.get("text", "") for event in ended.events)
            wrong = bench.faults("fit", ended, whole_outputs(bench.out))
            found.add(f"fit {'went on' if went_on else 'anew'}, to the same bytes: {ended.words}", wrong)
            bench.clear()


def went_on(bench: Bench, count: int, found: Count) -> None:
    """Kills a map again and again; in the end it has the bytes that it has when it is made at once."""
    wanted = maps_at_once(bench)
    # What goes on takes less and less time.
    for number, moment in enumerate(moments(count, bench.seconds["map"] / 2, seed=2)):
        ended = bench.run(bench.jobs["map"], kill_after(moment))
        found.add(f"map: {ended.words}", bench.faults("map", ended, whole_outputs(bench.out)))
        if number % KILLS == KILLS - 1:
            ended = bench.run(bench.jobs["map"])
            on = any("were mapped before" in event.get("text", "") for event in ended.events)
            wrong = bench.faults("map", ended, whole_outputs(bench.out))
            if maps(bench) != wanted:
                wrong.append("the bytes of the maps differ")
            found.add(f"map {'went on' if on else 'anew'}, to the same bytes: {ended.words}", wrong)
            bench.clear()


def maps_at_once(bench: Bench) -> dict[str, str]:
    """The checksums of the maps of a run that nothing disturbs."""
    bench.clear()
    bench.run(bench.jobs["map"])
    found = maps(bench)
    bench.clear()
    return found


def maps(bench: Bench) -> dict[str, str]:
    """File -> checksum of its bytes."""
    return {name: checksum for name, checksum in digests(bench.out).items() if name.endswith(".tif")}


def main() -> None:
    found = Count()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch))
        for name, count in (("save", COUNT), ("predict", COUNT), ("export", COUNT // 4)):
            if count:
                bench.learn(name)
                interrupted(bench, name, count, found)
        bench.learn("map")
        went_on(bench, max(COUNT // 2, KILLS), found)
        bench.learn("fit")
        resumed(bench, max(COUNT // 2, KILLS), found)
    found.tell()


if __name__ == "__main__":
    main()
