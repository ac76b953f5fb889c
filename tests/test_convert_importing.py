"""An import is complete or refused in words, and what it gives is an encoder like any other."""

import json

import pytest
import torch
from monai.networks.nets.vit import ViT as MonaiViT

import ctssl
from ctssl.cli.main import main
from ctssl.convert.families import FAMILIES
from ctssl.convert.families.moves import mlp_ratio
from ctssl.convert.importing import import_checkpoint
from ctssl.heads import HEADS, WHOLE
from ctssl.phantom import phantom
from ctssl.similarity import compare
from tests.support.foreign import smit_state, timm_vit
from tests.support.importing import SMIT, agree, imported, monai_swin, prefixed, save_plainly


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def smit(tmp_path):
    """A SMIT checkpoint's state, and a function that imports a changed copy of it."""
    state = smit_state(**(SMIT | dict(depths=(1, 1, 1, 1))), qkv_bias=True)

    def attempt(change: dict, **options):
        left = {key: value for key, value in {**state, **change}.items() if value is not None}
        file = save_plainly(left, tmp_path / "smit.safetensors")
        return import_checkpoint(file, out=tmp_path / "out", **options)

    return state, attempt


@pytest.mark.parametrize(
    "change, words",
    [
        ({"norm2.weight": None}, "the file is incomplete: 1 of .* first norms.2.weight"),
        ({"layers.1.blocks.0.mlp.fc2.bias": None}, "the file is incomplete"),
        ({"layers.1.blocks.0.attn.relative_position_bias_table": None}, "the file is incomplete"),
        ({"layers.0.blocks.0.attn.gate": torch.ones(3)}, "not representable: layers.0.blocks.0.attn.gate"),
        ({"absolute_pos_embed": torch.ones(1, 12, 2, 2, 2)}, "not representable: absolute_pos_embed"),
        ({"norm1.bias": torch.full((24,), torch.nan)}, "NaN"),
        (
            {"layers.2.downsample.reduction.weight": torch.ones(192, 384)},
            r"not representable: .* has shape \(192, 384\)",
        ),
        ({"patch_embed.proj.weight": torch.ones(12, 3, 2, 2, 2)}, "takes 3 channels"),
        ({"patch_embed.proj.weight": torch.ones(12, 1, 2, 2, 1)}, "ours are cubes"),
        (
            {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(64, 64, dtype=torch.long)},
            "numbers the relative positions differently",
        ),
        ({"layers.0.blocks.0.attn.logit_scale": torch.ones(1)}, "Swin V2"),
        (
            {"layers.999999999.blocks.0.norm1.weight": torch.ones(1)},
            r"stages are missing, it has only \[0, 1, 2, 3, 999999999\]",
        ),
    ],
)
def test_nothing_is_written_when_coverage_is_not_complete(tmp_path, smit, change, words):
    with pytest.raises(ValueError, match=words):
        smit[1](change)
    assert not (tmp_path / "out").exists()


def test_any_width_of_the_mlp_is_made_again():
    for width in (12, 48, 100, 144, 384):
        assert all(int(width * mlp_ratio(hidden, width)) == hidden for hidden in range(width, 6 * width))


def test_the_report_has_every_key_and_the_folder_its_source(tmp_path, smit, capsys):
    state, attempt = smit
    done = attempt({"out.weight": torch.ones(1)}, licence="CC-BY-4.0")
    report = json.loads((tmp_path / "out" / "import.json").read_text())
    assert {entry["key"] for entry in report["keys"]} == {*state, "out.weight"} and report[
        "keys"
    ] == done.keys
    assert sum(done.counts.values()) == len(state) + 1 and all(
        e["how"] for e in done.keys if e["action"] == "left out"
    )
    assert done.counts["changed"] == 4 * 3 and done.counts["taken"] == 4
    assert main(["info", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    sha256 = report["source"]["sha256"]
    assert all(words in told for words in ("smit.safetensors", sha256, "CC-BY-4.0", "SMIT", "ctssl.load("))
    with pytest.raises(FileExistsError, match="--overwrite"):
        attempt({})


def test_a_file_of_another_family_is_refused_by_name(tmp_path):
    files = {
        "smit": smit_state(**SMIT, qkv_bias=True),
        "timm-vit": timm_vit(64).state_dict(),
        "monai-vit": MonaiViT(1, 64, 16, 48, 96, 2, 4).state_dict(),
    }
    files["monai-swinunetr"] = monai_swin().state_dict()
    files["monai-swinvit"] = {k.replace("linear", "fc"): v for k, v in files["monai-swinunetr"].items()}
    assert set(files) == set(FAMILIES)
    for family, state in files.items():
        file = save_plainly(state, tmp_path / "file.safetensors")
        for asked in set(FAMILIES) - {family}:
            with pytest.raises(
                ValueError, match=f"is not a {asked} checkpoint: this looks like .* use --from {family}"
            ):
                import_checkpoint(file, out=tmp_path / "out", family=asked)
    with pytest.raises(ValueError, match="unknown family 'swin'"):
        import_checkpoint(file, out=tmp_path / "out", family="swin")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "state, words",
    [
        ({"layers.0.weight": torch.ones(2)}, "no known encoder: its first keys are"),
        ({"encoder.stages.0.0.convs.0.weight": torch.ones(2)}, "an nnU-Net"),
        (
            {
                "patch_embed.proj.weight": torch.ones(4, 3, 4, 4),
                "layers.0.blocks.0.attn.relative_position_bias_table": torch.ones(2),
            },
            "2D Swin",
        ),
        (
            {f"{name}.patch_embed.proj.weight": torch.ones(1) for name in "ab"},
            r"2 encoders, \['a.', 'b.'\]; choose one with --root",
        ),
    ],
)
def test_other_networks_are_refused_in_words(tmp_path, state, words):
    file = save_plainly(state, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=words):
        import_checkpoint(file, out=tmp_path / "out")


def test_one_encoder_of_several_can_be_chosen(tmp_path):
    one, two = monai_swin(), monai_swin()
    content = prefixed(one.state_dict(), "online.") | prefixed(two.state_dict(), "target.")
    encoder, done = imported(tmp_path, content, merging="1.5", root="target.")
    agree(encoder, two, 64)
    assert {e["action"] for e in done.keys if e["key"].startswith("online.")} == {"left out"}
    with pytest.raises(ValueError, match=r"use one of \['online.', 'target.'\]"):
        imported(tmp_path, content, merging="1.5", root="other.")


@pytest.mark.slow
def test_an_imported_encoder_is_one_like_any_other(tmp_path, labelled, capsys):
    encoder, _ = imported(tmp_path, smit_state(**SMIT, qkv_bias=True))
    x = torch.rand(1, 1, 64, 64, 64)
    for head in set(HEADS) - set(WHOLE):  # which takes no encoder
        assert ctssl.segmenter(encoder, head=head)(x).shape == (1, 2, 64, 64, 64)
    settings = ctssl.Settings(steps=2, batch=1, crop=48)
    model = ctssl.finetune(
        labelled,
        model=tmp_path / "imported",
        out=tmp_path / "model",
        settings=settings,
        head="smit",
        hold_out=["case2"],
        progress=False,
        device="cpu",
    )
    assert model.held_out.keys() == {"case2"}
    tuned = ctssl.load_segmenter(tmp_path / "model")
    found = compare(encoder, tuned, [phantom(6.0)[0]], crops=8, batch=8, size=32)
    assert found.matrix.shape == (7, 7) and found.matrix.diagonal().min() > 0.9
    assert encoder.embed(phantom(6.0)[0]).shape == (192,)
    judged = ctssl.measure_robustness(
        labelled,
        model=tmp_path / "model",
        cases=["case2"],
        shifts=("thickness",),
        severities=(5,),
        overlays=0,
        out=tmp_path / "report",
    )
    assert [row["shift"] for row in judged.rows] == ["clean", "thickness"]
    assert judged.rows[0]["dsc"] == pytest.approx(model.held_out["case2"]["tumour"])
    assert main(["info", str(tmp_path / "model"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parent"] == "imported"


def test_the_command(tmp_path, capsys):
    file = save_plainly(prefixed(monai_swin().state_dict(), "swinViT."), tmp_path / "file.safetensors")
    command = ["import", str(file), "--from", "monai-swinunetr", "--out", str(tmp_path / "out")]
    assert main(command) == 2 and "--merging 1.4" in capsys.readouterr().err
    assert main([*command, "--merging", "1.4", "--window-hu", "-500", "500", "--spacing", "2"]) == 0
    told = capsys.readouterr().out
    assert "left out" in told and "import.json" in told and "2 mm, -500 to 500 HU" in told
    assert ctssl.load(tmp_path / "out").config["merge_order"] == "monai-1.4"
    assert main([*command, "--merging", "1.5"]) == 2 and "--overwrite" in capsys.readouterr().err
    assert main([*command, "--merging", "1.5", "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["left out"] == 7
