"""The job's options on the command line: made from the fields of the job when a command needs them.

Building them imports pydantic; `vsr --help` shows no options of commands and does not build them. Only
options that were typed are passed on: the job has the defaults, and an option overrides the job file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from vsr_hpc.cli.completion import complete_models
from vsr_hpc.errors import JobError

if TYPE_CHECKING:
    from vsr_hpc.job.options import JobKey
    from vsr_hpc.job.spec import JobSpec

_GIVEN = "vsr_hpc.cli.job_options"


class JobCommand(TyperCommand):
    """A command that takes the options of a job; `given_options` has those that were typed."""

    keys: tuple[str, ...] | None = None
    """The keys of the job whose options it takes; by default all but those for Slurm."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters: arguments, the job's options by panel, and the command's own."""
        own = super().get_params(ctx)
        for each in own:
            if each.name == "help" and isinstance(each, TyperOption):
                each.rich_help_panel = "Run"
        arguments = [each for each in own if each.param_type_name == "argument"]
        others = [each for each in own if each.param_type_name != "argument"]
        return [*arguments, *_parameters(self._job_keys()), *others]

    def invoke(self, ctx: Any) -> Any:
        """Run the command; its function gets no parameter for the job's options."""
        given = {}
        for key in self._job_keys():
            name = _parameter_name(key)
            value = ctx.params.pop(name, None)
            source = ctx.get_parameter_source(name)
            if source is not None and source.name != "DEFAULT":
                given[key.key] = _value(key, value)
        ctx.meta[_GIVEN] = given
        return super().invoke(ctx)

    def _job_keys(self) -> tuple[JobKey, ...]:
        from vsr_hpc.job.options import job_options

        return tuple(key for key in job_options() if self._takes(key))

    def _takes(self, key: JobKey) -> bool:
        if self.keys is not None:
            return key.key in self.keys
        return key.option is not None and key.option.panel != "Slurm"


class SubmitCommand(JobCommand):
    """Takes all options of a job, those for Slurm among them."""

    def _takes(self, key: JobKey) -> bool:
        return True


class VerifyCommand(JobCommand):
    """Takes those options of a job that say which frames and streams an output must have."""

    keys = (
        "picture.deinterlace",
        "picture.field_order",
        "streams.audio",
        "streams.drop",
        "range.from",
        "range.to",
        "range.frames",
        "range.salvage",
        "images.rate",
    )


def given_options(context: typer.Context) -> dict[str, Any]:
    """The options of a job that were typed, by their keys in a job file: {"picture.scale": "2"}."""
    found: dict[str, Any] = context.meta[_GIVEN]
    return found


@cache
def _parameters(keys: tuple[JobKey, ...]) -> list[Any]:
    """The options as typer makes them. Values stay texts: the job's own types check them."""

    def command(**_: Any) -> None: ...

    parameters = [
        inspect.Parameter(
            _parameter_name(key),
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(key),
            annotation=Annotated[_type(key), _declaration(key)],
        )
        for key in keys
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return list(typer.main.get_command(app).params)


def _declaration(key: JobKey) -> Any:
    assert key.option is not None
    return typer.Option(
        *key.names,
        help=key.description,
        metavar=key.metavar or None,
        rich_help_panel=key.option.panel,
        autocompletion=_completion(key),
        show_default=bool(key.metavar),
    )


def _completion(key: JobKey) -> Callable[..., Any] | None:
    """What the shell offers for the option's value."""
    if key.key == "model":
        return complete_models
    return (lambda: list(key.choices)) if key.choices else None


def _parameter_name(key: JobKey) -> str:
    return key.key.replace(".", "__")


def _type(key: JobKey) -> Any:
    if not key.metavar:
        return bool
    return list[str] if key.is_repeated else str | None


def _default(key: JobKey) -> Any:
    if not key.metavar:
        return False
    return [] if key.is_repeated else key.default or None


def _value(key: JobKey, value: Any) -> Any:
    if key.option is not None and key.option.flag_value and value:
        return key.option.flag_value
    return tuple(value) if key.is_repeated else value


def build_document(given: dict[str, Any], source: str, output: str) -> dict[str, Any]:
    """A job's plain values from options and two places."""
    from vsr_hpc.job.reading import override

    return override({"input": source, "output": output}, given)


def says_frames(given: dict[str, Any]) -> bool:
    """Whether an option says that images are the frames of one clip."""
    return "images.rate" in given or "images.allow_gaps" in given


def read_job(paths: list[str], given: dict[str, Any]) -> JobSpec:
    """The one job of `JOB.yaml`, of `IN OUT`, or of both, with the given options laid over it."""
    jobs = read_jobs(paths, given)
    if len(jobs) > 1:
        raise JobError(
            f"{paths[-1]}: {len(jobs)} inputs are {len(jobs)} jobs; this command takes one, so name one input"
        )
    return jobs[0]


def read_jobs(paths: list[str], given: dict[str, Any]) -> list[JobSpec]:
    """The jobs of `JOB.yaml`, of `IN... OUT`, or of both: then each input is done as the file says."""
    from vsr_hpc.job.inputs import expand
    from vsr_hpc.job.options import spell_option
    from vsr_hpc.job.reading import load_job, override, parse_job

    has_file = len(paths) == 1 or Path(paths[0]).suffix.lower() in (".yaml", ".yml")
    if not has_file:
        pairs = expand(paths, are_frames=says_frames(given))
        return [parse_job(build_document(given, *pair), "", spell=spell_option) for pair in pairs]
    job = load_job(Path(paths[0]))
    if len(paths) == 1 and not given:
        return [job]
    written = job.model_dump(mode="json", by_alias=True, exclude_unset=True)
    pairs = (
        expand(paths[1:], are_frames=says_frames(given))
        if len(paths) > 1
        else ((written["input"], written["output"]),)
    )
    if len(pairs) > 1 and job.run.location:
        raise JobError(
            f"{paths[0]}: run.location can hold one run only; leave it out for {len(pairs)} inputs"
        )
    return [
        parse_job(override({**written, "input": source, "output": output}, given), "", spell=spell_option)
        for source, output in pairs
    ]
