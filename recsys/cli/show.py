"""What the demo shows of a running service: slates of real users, and a purchase that changes one."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from recsys.errors import UnavailableError

COLUMNS = ("recall@20", "recall@100", "ndcg@10", "coverage@20", "category_diversity@20")
PATIENCE_S = 10.0  # for a posted purchase to be known; it takes milliseconds


def ask(url: str, path: str, body: Any = None) -> Any:
    """The JSON answer. Raises UnavailableError for any status but 200."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise UnavailableError(f"{url}{path} answers {error.code}: {error.read().decode()[:300]}") from error
    except OSError as error:
        raise UnavailableError(f"{url} does not answer ({error}): is the service up?") from error


def evaluation_table(console: Console, protocol: str, part: Mapping[str, Any]) -> None:
    """One protocol's lines, each value with half the width of its 95 % interval."""
    if not part["users"]:
        said = f"{protocol}: scene {part['scene']}, no user with a past came back: nobody to judge by"
        console.print(f"[dim]{said}[/dim]", highlight=False)
        return
    title = f"{protocol}: scene {part['scene']}, {part['users']:,} users, full catalog ranked"
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.add_column("")
    for name in COLUMNS:
        table.add_column(name.replace("category_", ""), justify="right")
    for name, line in part["lines"].items():
        if "recall@20" in line:
            style = "bold" if name == "pipeline" else None
            table.add_row(name, *(_with_interval(line, column) for column in COLUMNS), style=style)
    console.print(table)
    union = part["lines"]["union"]["recall"]
    adds = {
        name.removeprefix("union without "): union - line["recall"]
        for name, line in part["lines"].items()
        if name.startswith("union without ")
    }
    only = ", ".join(f"{source} +{gain:.3f}" for source, gain in sorted(adds.items(), key=lambda a: -a[1]))
    console.print(
        f"[dim]recall of the union of all sources {union:.3f}; only by {only}[/dim]\n", highlight=False
    )


def show_slates(
    console: Console, url: str, users: Sequence[str], *, scene: str, hiding_scene: str | None
) -> list[dict[str, Any]]:
    """Asks for a slate of each user; posts a purchase for the first and shows that it is gone."""
    slates = []
    for user in users:
        slate = ask(url, "/v1/recommendations", {"user_id": user, "scene": scene, "n": 5})
        slates.append(slate)
        _print_slate(console, slate)
    if hiding_scene is None:
        return slates
    asked = {"user_id": users[0], "scene": hiding_scene, "n": 5}
    before = ask(url, "/v1/recommendations", asked)
    _print_slate(console, before)
    slates.append(before)
    if not before["items"]:
        return slates
    bought = before["items"][0]
    event = {"user_id": users[0], "item_id": bought["item_id"], "event_type": "purchase", "quantity": 1}
    start = time.perf_counter()
    ask(url, "/v1/events", event | {"context": {"slate_id": before["slate_id"]}})
    while True:
        after = ask(url, "/v1/recommendations", asked)
        seconds = time.perf_counter() - start
        if bought["item_id"] not in [item["item_id"] for item in after["items"]]:
            break
        if seconds > PATIENCE_S:
            raise UnavailableError(f"a purchase was not known {PATIENCE_S:g} s after it was posted")
        time.sleep(0.01)
    console.print(
        f"user {users[0]} buys [bold]{bought['title']}[/bold]: gone from the next slate after "
        f"{1000 * seconds:.0f} ms",
        highlight=False,
    )
    _print_slate(console, after)
    return [*slates, after]


def _print_slate(console: Console, slate: Mapping[str, Any]) -> None:
    admits = f" [yellow](degraded: {', '.join(slate['degraded'])})[/yellow]" if slate["degraded"] else ""
    console.print(f"\n[bold]{slate['scene']}[/bold] for user {slate['user_id']}{admits}", highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    for item in slate["items"]:
        score = "" if item["score"] is None else f"{item['score']:.2f}"
        table.add_row(
            f"  {item['item_id']}", item["title"], score, f"[dim]{', '.join(item['sources'])}[/dim]"
        )
    console.print(table, highlight=False)


def _with_interval(line: Mapping[str, Any], metric: str) -> str:
    low, high = line[f"{metric}_interval"]
    return f"{line[metric]:.3f} [dim]±{(high - low) / 2:.3f}[/dim]"
