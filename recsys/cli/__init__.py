"""The `recsys` command: one file for each group of commands. Heavy imports happen inside commands.

An error that recsys raises on purpose is one line on standard error and exit code 2; `--debug` before
the command shows the traceback instead. Anything else is a bug and keeps its traceback.
"""

import sys

import typer

from recsys.cli import advise, data, demo, doctor, evaluate, events, index, look, releases, service
from recsys.errors import in_one_line

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="recsys: a recommender platform on Ray, from raw events to the slate a user sees.",
)
DEBUG = {"on": False}


@app.callback()
def _options(debug: bool = typer.Option(False, help="Show tracebacks of errors.")) -> None:
    DEBUG["on"] = debug


app.command("demo")(demo.demo)
app.command("ingest")(data.ingest)
app.command("evaluate")(evaluate.evaluate)
app.command("advise")(advise.advise)
app.command("recommend")(look.recommend)
app.command("similar")(look.similar)
app.command("serve")(service.serve)
app.command("doctor")(doctor.doctor)
app.command("settings")(doctor.settings)
app.add_typer(releases.app, name="releases")
app.add_typer(events.app, name="events")
app.add_typer(index.app, name="index")


def main() -> None:
    try:
        app()
    except Exception as error:
        told = in_one_line(error)
        if told is None or DEBUG["on"]:
            raise
        print(f"error: {told}", file=sys.stderr)
        sys.exit(2)
