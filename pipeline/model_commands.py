"""Commands about models: what can be had, fetching it, writing a model in the official naming."""

# ruff: noqa: D301 (click takes \b, the character, as "do not rewrap this paragraph")

import json
import shlex
from pathlib import Path

import click

from pipeline.options import PROGRAM, user_models_folder
from pipeline.text_table import print_table

__all__ = ["models_group"]

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group("models")
def models_group() -> None:
    """Fetch published teachers; write a model for the official code.

    \b
    efficient-medsam2 models list
    """


@models_group.command("list")
@click.option("folder", "--folder", type=_FOLDER, help="Where pulled models lie.")
@click.option("as_json", "--json", is_flag=True, help="Print JSON for machines.")
@click.pass_context
def list_models(context: click.Context, folder: Path | None, as_json: bool) -> None:
    """Say which teachers can be had, from where, and which are here and whole.

    Reads every byte of those that are here and compares them with the SHA-256 recorded when they
    were pulled; writes nothing. Exit code 7 if one has changed since.

    \b
    efficient-medsam2 models list
    """
    from dataclasses import asdict

    from efficient_medsam2.checkpoints import KNOWN_MODELS, SHIPPED_TEACHER, checkpoint_sha256
    from efficient_medsam2.errors import WeightsError
    from pipeline.model_store import look

    place = folder or user_models_folder()
    found = {model.name: look(model, place) for model in KNOWN_MODELS}
    try:
        shipped = checkpoint_sha256("scratch", None)
    except WeightsError:
        shipped = None
    if as_json:
        records = [
            {**asdict(model), **asdict(found[model.name]), "path": str(found[model.name].path)}
            for model in KNOWN_MODELS
        ]
        demo = {"path": str(SHIPPED_TEACHER), "sha256": shipped}
        click.echo(json.dumps({"shipped": demo, "models": records}, indent=2))
    else:
        here = "no: reinstall the package" if shipped is None else f"yes, sha256 {shipped[:12]}"
        rows = [("demo teacher", "scratch", "comes with the package", "", here, "the package")]
        for model in KNOWN_MODELS:
            state, digest = found[model.name].state, found[model.name].sha256
            told = {"absent": "no", "here": f"yes, sha256 {digest}"[:24], "changed": "CHANGED"}
            size = f"{model.megabytes} MB"
            rows.append((model.name, model.kind, model.what, size, told[state], model.page))
        print_table(("name", "teacher.kind", "what", "size", "here", "from"), rows)
        click.echo(f"folder: {place}")
        click.echo(f"fetch one: {PROGRAM} models pull NAME [--from FILE]")
    changed = [name for name, presence in found.items() if presence.state == "changed"]
    for name in changed:
        click.echo(
            f"{found[name].path} is not what was pulled; mend: {PROGRAM} models pull {name}",
            err=True,
        )
    if changed:
        context.exit(7)


@models_group.command("pull")
@click.argument("name")
@click.option("folder", "--to", type=_FOLDER, help="Another folder than the user's own.")
@click.option(
    "source",
    "--from",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Copy this file instead of fetching one: for machines without a network.",
)
@click.option(
    "--revision", default="main", show_default=True, help="Branch, tag or commit on the hub."
)
def pull_model(name: str, folder: Path | None, source: Path | None, revision: str) -> None:
    """Fetch the published teacher NAME from the Hugging Face hub, or take it from a file.

    Loads it once to see that it is whole and what it says, and records its SHA-256 beside it. A
    broken download continues when the command is typed again; HF_ENDPOINT, HF_TOKEN and
    HF_HUB_OFFLINE are obeyed. The folder is the user's own (EFFICIENT_MEDSAM2_MODELS, or the
    platform's place for data), where a config with this teacher.kind finds it.

    \b
    efficient-medsam2 models pull medsam2
    efficient-medsam2 models pull medsam2 --from /media/stick/MedSAM2_latest.pt
    """
    from efficient_medsam2.checkpoints import known_model
    from pipeline.model_store import find_model, pull

    model = find_model(name)
    place = folder or user_models_folder()
    origin = pull(model, place, revision=revision, source=source)
    path = place / model.name / origin.file
    click.echo(f"{path}: {origin.bytes / 1e6:.1f} MB, sha256 {origin.sha256}")
    settings = [f"teacher.kind={model.kind}"]
    if model.kind == "sam2.1":
        settings.append(f"teacher.size={model.size}")
    if folder is not None or known_model(model.kind, model.size) != model:
        settings.append(f"teacher.checkpoint={path}")
    words = " ".join(f"--set {shlex.quote(setting)}" for setting in settings)
    click.echo(f"next: {PROGRAM} plan -c laptop {words}")


@models_group.command("export")
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
def export_model(model: Path, out: Path) -> None:
    """Write the model folder MODEL as OUT, which the official SAM 2 and MedSAM2 code loads.

    OUT is {"model": ...} where it ends with .pt, the bare tensors where it ends with
    .safetensors. Possible for networks of SAM 2.1's own sizes: a fine-tuned teacher, not a
    student with another image encoder.

    \b
    efficient-medsam2 models export ct.cache/teacher MedSAM2_again.pt
    """
    from dataclasses import fields

    from efficient_medsam2.networks.model_folder import load_runner
    from efficient_medsam2.networks.options import RunnerOptions
    from efficient_medsam2.teachers.official_export import save_official

    runner = load_runner(model)
    size = save_official(runner, out)
    click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB, SAM 2.1 of size {size}")
    usual = RunnerOptions()
    for field in fields(RunnerOptions):
        value = getattr(runner.options, field.name)
        if value != getattr(usual, field.name):
            click.echo(f"note: {field.name}={value} has no place in an official file", err=True)
    side = runner.image_size
    click.echo(f"official configuration: sam2.1_hiera_{size}.yaml with image_size {side}")
    setting = f"--set teacher.kind=sam2.1 --set teacher.image_size={side}"
    path = shlex.quote(f"teacher.checkpoint={out}")
    click.echo(f"next: {PROGRAM} plan -c laptop {setting} --set {path}")
