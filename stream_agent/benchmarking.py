"""The command line of benchmarks: `bench [NAME…]` and `bench compare A B`.

Benchmarks are part of the checkout and not of the installed package: they read the product from outside, start its processes
and need its peers. Without a checkout the command says so.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from stream_agent.errors import ConfigError

_ROOT = Path(__file__).resolve().parent.parent
_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]... | compare A B")
@click.option("--quick", is_flag=True, help="Half a minute to two for each; noisier.")
@click.option(
    "--guard", is_flag=True, help="Fail on ratios beyond their guard alone, as CI does, not on missed targets."
)
@click.option("--save", is_flag=True, help="File each result under benchmarks/results/.")
@click.option("--report", type=_FILE, help="Folder for a report: index.html, report.md, result.json.")
def bench(names: tuple[str, ...], quick: bool, guard: bool, save: bool, report: Path | None) -> int:
    """Measure latency against targets, peers and physical limits; all benchmarks without a NAME.

    The last line is one JSON object. `compare A B` tells which differences between two such results exceed their noise, and
    fails on a ratio that became worse.
    """
    _require_checkout()
    if names[:1] == ("compare",):
        if len(names) != 3:
            raise click.UsageError("bench compare takes two results: bench compare A.json B.json")
        return _compare(Path(names[1]), Path(names[2]))
    from benchmarks import pages, suite
    from benchmarks.targets import load_targets

    chosen = suite.check_names(names)
    load_targets()  # a mistake in the file is told before minutes are spent
    if report is not None:
        pages.require_folder(report)
    results = suite.run(chosen, quick=quick, save=save, tell=click.echo)
    joined = suite.joined(results)
    if report is not None:
        for path in pages.write(results, joined, report):
            click.echo(f"wrote {path}")
    click.echo(json.dumps(joined, separators=(",", ":")))
    return suite.exit_code(results, guard=guard)


def _compare(before: Path, after: Path) -> int:
    from benchmarks import compare

    old, new = compare.load_result(before), compare.load_result(after)
    found = compare.differences(old, new)
    for one in found:
        if one.verdict in ("better", "worse") or one.judged:
            click.echo(
                f"{one.verdict:<8}{'' if one.judged else '(told) '}{one.benchmark} {one.method} {one.case}: {one.key} "
                f"{one.before:.4g} to {one.after:.4g}, quotient {one.low:.3g} to {one.high:.3g}"
            )
    for place in compare.missing(old, new):
        click.echo(f"only in one of the two: {place}")
    regressions = [one for one in found if one.regression]
    click.echo(
        f"{len(regressions)} of {sum(one.judged for one in found)} ratios became worse beyond the noise of the two runs"
    )
    click.echo(json.dumps({"rows": [one.as_json() for one in found], "regressions": len(regressions)}))
    return int(bool(regressions))


def _require_checkout() -> None:
    """Put the checkout first on the path.

    Raises:
        ConfigError: This package was installed without one.
    """
    if not (_ROOT / "benchmarks" / "suite.py").is_file():
        raise ConfigError(
            f"benchmarks are not part of the installed package ({_ROOT}); run them in a checkout: python run_agent.py bench"
        )
    if str(_ROOT) not in sys.path:
        sys.path.insert(0, str(_ROOT))
