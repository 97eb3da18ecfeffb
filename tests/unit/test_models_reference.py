"""Reference classifiers, and imported modules that are exported and loaded again."""

import json
from pathlib import Path
from typing import Any

import digits
import pytest
import torch
from safetensors.torch import save_file

from orchestrator.errors import SpecError
from orchestrator.models.export import export_folder
from orchestrator.models.exported import Export, may_import
from orchestrator.models.folder import check_folder
from orchestrator.models.forward import classify
from orchestrator.models.load import Loaded, load_model
from orchestrator.models.made import MADE_FILE, is_made, made_by, read_made
from orchestrator.models.reference import blocks, conv, mlp, pair
from orchestrator.planner.sizes import model_size
from orchestrator.spec.models import ModelSpec, StudentSpec

FEATURES = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


def load(**changes: Any) -> Loaded:
    return load_model(ModelSpec.model_validate({**digits.student(), **changes}), seed=3)


def test_a_row_of_logits_a_sample_and_each_sample_by_itself() -> None:
    module = load().module
    logits = classify(module, {"features": FEATURES})
    assert logits.shape == (5, 10)
    alone = torch.cat([classify(module, {"features": FEATURES[i : i + 1]}) for i in range(5)])
    torch.testing.assert_close(logits, alone)
    images = conv(1, 8, 10, width=4)(pixel_values=FEATURES.reshape(5, 1, 8, 8))
    assert images.shape == (5, 10)


@pytest.mark.parametrize(
    "make", [lambda **how: mlp(64, 10, **how), lambda **how: conv(1, 8, 10, **how)]
)
def test_skips_turned_off_leave_the_parameters_as_they_are(make: Any) -> None:
    torch.manual_seed(0)
    whole = make(residual=True)
    plain = make(residual=False)
    plain.load_state_dict(whole.state_dict(), strict=True)
    inputs = FEATURES if hasattr(whole.first, "in_features") else FEATURES.reshape(5, 1, 8, 8)
    assert not torch.allclose(whole(inputs), plain(inputs))


def test_without_blocks_skips_make_no_difference() -> None:
    torch.manual_seed(0)
    whole = mlp(64, 10, depth=0)
    plain = mlp(64, 10, depth=0, residual=False)
    plain.load_state_dict(whole.state_dict())
    assert torch.equal(whole(FEATURES), plain(FEATURES))


def test_an_assistant_adds_to_the_students_features_and_to_nothing_else() -> None:
    torch.manual_seed(0)
    both, alone = pair(64, 10, 32, 17, 9), pair(64, 10, 32, 26, 0)
    sizes = [sum(p.numel() for p in module.parameters()) for module in (both, alone)]
    assert sizes[0] <= 1.02 * sizes[1]
    seen: dict[str, torch.Tensor] = {}
    for path in ("own", "together"):
        getattr(both, path).register_forward_hook(
            lambda _module, _inputs, output, path=path: seen.update({path: output})
        )
    x = torch.randn(3, 64)
    logits = both(features=x)
    first, second = both.assistant  # type: ignore[misc]
    rest = second(torch.relu(first(x)))
    torch.testing.assert_close(seen["together"], seen["own"] + rest)
    torch.testing.assert_close(logits, both.head(seen["together"]))
    assert alone.assistant is None and alone(features=x).shape == (3, 10)
    with pytest.raises(ValueError, match="assistant is -1"):
        pair(64, 10, assistant=-1)


def test_a_pair_of_two_hidden_layers_has_the_parameters_of_its_budget() -> None:
    torch.manual_seed(0)
    sizes = {
        widths: sum(p.numel() for p in pair(64, 10, 32, *widths, depth=2).parameters())
        for widths in ((12, 0), (21, 0), (12, 8))
    }
    # One head each: 64 w + w + w w + w + 32 w + 32, and 330 of the head.
    assert sizes == {(12, 0): 1682, (21, 0): 2861, (12, 8): 1682 + 880}
    both = pair(64, 10, 32, 12, 8, depth=2)
    x = torch.randn(3, 64)
    wanted = sum(
        last(torch.relu(second(torch.relu(first(x)))))
        for first, second, last in (both.student, both.assistant)  # type: ignore[misc]
    )
    torch.testing.assert_close(both(features=x), both.head(wanted))


def test_blocks_of_any_width_give_features_of_one_size() -> None:
    torch.manual_seed(0)
    seen: dict[tuple[int, str], torch.Tensor] = {}
    for width in (128, 24):
        net = blocks(64, 10, width=width, depth=3, features=32)
        for index, stage in enumerate(net.stages):
            stage.register_forward_hook(
                lambda _module, _inputs, output, at=(width, f"stages.{index}"): seen.update(
                    {at: output}
                )
            )
        logits = net(features=FEATURES)
        x = FEATURES
        for first, second in net.blocks:  # type: ignore[misc]
            x = torch.relu(second(torch.relu(first(x))))
        torch.testing.assert_close(seen[width, "stages.2"], x)
        torch.testing.assert_close(logits, net.head(x))
    assert {features.shape for features in seen.values()} == {(5, 32)} and len(seen) == 6
    with pytest.raises(ValueError, match="depth is too small"):
        blocks(64, 10, depth=0)


def test_a_skip_turned_off_is_another_role_though_its_weights_are_the_same() -> None:
    first, second = load(), load(arguments={**digits.student()["arguments"], "residual": False})
    assert first.fingerprint == load().fingerprint != second.fingerprint
    same = zip(first.module.state_dict().values(), second.module.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"inputs": 64, "classes": 0}, "classes is too small"),
        ({"inputs": 64, "classes": 2, "activation": "swish"}, "activation is 'swish'; use one of"),
        ({"inputs": 64}, "refuses its arguments"),
        ({"inputs": 64, "classes": 2, "width": {1: 2}}, "cannot be kept as JSON"),
    ],
)
def test_arguments_that_make_no_module_are_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        load(arguments=arguments)


def exported(tmp_path: Path) -> tuple[Loaded, Path]:
    loaded = load()
    with torch.no_grad():
        loaded.module.head.bias.add_(1.0)  # no longer what the seed gives
    return loaded, export_folder(loaded.module, None, tmp_path / "out", made=loaded.made)


def test_an_imported_module_comes_back_from_its_export(tmp_path: Path) -> None:
    loaded, folder = exported(tmp_path)
    assert sorted(file.name for file in folder.iterdir()) == ["model.safetensors", MADE_FILE]
    spec = ModelSpec(path=str(folder), task="classifier", allow_remote_code=True)
    again = load_model(spec, field="roles.teacher")
    assert again.made == loaded.made and again.vocabulary == 10
    inputs = {"features": FEATURES}
    assert torch.equal(classify(again.module, inputs), classify(loaded.module, inputs))
    assert model_size(spec).parameters == sum(p.numel() for p in loaded.module.parameters())


def test_an_edited_copy_has_the_weights_and_does_something_else(tmp_path: Path) -> None:
    """Skips off: as many parameters, the same ones (arXiv:2006.16589); fewer blocks: the first."""
    loaded = load(arguments={**digits.student()["arguments"], "depth": 3})
    folder = export_folder(loaded.module, None, tmp_path / "out", made=loaded.made)

    def edited(**edit: object) -> Loaded:
        spec = {"path": str(folder), "task": "classifier", "allow_remote_code": True, "edit": edit}
        return load_model(ModelSpec.model_validate(spec), field="roles.teacher")

    plain = edited(residual=False)
    kept = plain.module.state_dict()
    assert kept.keys() == loaded.module.state_dict().keys()
    assert all(torch.equal(kept[name], value) for name, value in loaded.module.state_dict().items())
    inputs = {"features": FEATURES}
    assert not torch.equal(classify(plain.module, inputs), classify(loaded.module, inputs))
    assert plain.fingerprint != loaded.fingerprint == edited().fingerprint
    assert sum(p.numel() for p in edited(depth=1).module.parameters()) < sum(
        p.numel() for p in plain.module.parameters()
    )
    with pytest.raises(SpecError, match=r"blocks.3.bias.*are not there"):
        edited(depth=4)
    with pytest.raises(SpecError, match=r"refuses its arguments.*no_such"):
        edited(no_such=1)
    again = export_folder(plain.module, None, tmp_path / "again", made=plain.made)
    assert loaded.made is not None
    first = StudentSpec(**{"import": loaded.made.target}, arguments=loaded.made.arguments)
    exports = {
        "first": Export(str(folder), first),
        "second": Export(str(again), StudentSpec(job="first", edit={"residual": False})),
        "third": Export(str(again), StudentSpec(job="second")),
    }
    assert may_import(again, "second", exports, "student.job")
    assert may_import(again, "third", exports, "student.job")
    with pytest.raises(SpecError, match="Somebody has changed the export"):
        may_import(folder, "second", exports, "student.job")


def test_code_named_by_a_folder_is_imported_by_consent_only(tmp_path: Path) -> None:
    _, folder = exported(tmp_path)
    (folder / MADE_FILE).write_text(
        json.dumps({"format": 1, "import": "orchestrator.no_such:thing", "arguments": {}})
    )
    bare = ModelSpec(path=str(folder), task="classifier")
    for look in (
        lambda: load_model(bare, field="student"),
        lambda: check_folder(folder, bare, "student.path"),
    ):
        with pytest.raises(SpecError, match=r"no_such:thing.*student.allow_remote_code: true"):
            look()
    with pytest.raises(SpecError, match="does not import"):
        load_model(bare.model_copy(update={"allow_remote_code": True}))


def test_an_earlier_jobs_export_names_the_code_of_the_list_or_is_refused(tmp_path: Path) -> None:
    loaded, folder = exported(tmp_path)
    assert loaded.made is not None
    named = StudentSpec(**{"import": loaded.made.target}, arguments=loaded.made.arguments)
    later = StudentSpec(job="first")
    exports = {"first": Export(str(folder), named), "second": Export(str(folder), later)}
    assert may_import(folder, "first", exports, "student.job")
    assert may_import(folder, "second", exports, "student.job")
    by_path = {"first": Export(str(folder), StudentSpec(path=str(folder), allow_remote_code=True))}
    assert may_import(folder, "first", by_path, "student.job")
    fresh = {"first": Export(str(folder), StudentSpec(architecture={"model_type": "llama"}))}
    with pytest.raises(SpecError, match=r"job first is made by no code.*run that job again"):
        may_import(folder, "first", fresh, "roles.teacher.job")
    changed = (folder / MADE_FILE).read_text().replace(loaded.made.target, "os:system")
    (folder / MADE_FILE).write_text(changed)
    for name in ("first", "second"):
        with pytest.raises(SpecError, match=r"roles\.teacher\.job.*os:system.*run that job again"):
            may_import(folder, name, exports, "roles.teacher.job")
    assert not may_import(tmp_path, "first", exports, "student.job")  # nothing to import


def test_an_export_that_is_torn_or_of_other_code_is_refused(tmp_path: Path) -> None:
    _, folder = exported(tmp_path)
    spec = ModelSpec(path=str(folder), task="classifier", allow_remote_code=True)
    whole = (folder / MADE_FILE).read_text()
    (folder / MADE_FILE).write_text(whole.replace('"width": 32', '"width": 16'))
    with pytest.raises(SpecError, match="does not hold the weights of MLP"):
        load_model(spec)
    (folder / MADE_FILE).write_text(whole.replace('"format": 1', '"format": 2'))
    with pytest.raises(SpecError, match="has format 2, and this version reads 1"):
        load_model(spec)
    (folder / MADE_FILE).write_text(whole[:20])
    with pytest.raises(SpecError, match="cannot be read"):
        load_model(spec)


def test_a_folder_with_a_config_is_a_transformers_model(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / MADE_FILE).write_text(made_by("a.b:c", {"x": [1, None]}, "student").text)
    assert is_made(tmp_path) and read_made(tmp_path, "f").arguments == {"x": [1, None]}
    (tmp_path / "config.json").write_text("{}")
    assert not is_made(tmp_path)
