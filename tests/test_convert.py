"""Other people's checkpoints: what an imported encoder computes is what its source computes; what cannot be is refused."""

import json
import os
import pickle
import zipfile

import pytest
import torch
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT
from monai.networks.nets.swin_unetr import SwinTransformer, SwinUNETR
from monai.networks.nets.unetr import UNETR
from monai.networks.nets.vit import ViT as MonaiViT
from monai.networks.nets.vitautoenc import ViTAutoEnc
from safetensors.torch import save_file

import ctssl
from ctssl.cli.main import main
from ctssl.convert import checkpoint as pickles
from ctssl.convert.checkpoint import read_checkpoint
from ctssl.convert.families import FAMILIES
from ctssl.convert.families.moves import mlp_ratio
from ctssl.convert.importing import import_checkpoint
from ctssl.heads import HEADS
from ctssl.phantom import phantom
from ctssl.similarity import compare
from tests.foreign import OldPatchMerging, randomise, smit_features, smit_state, timm_vit

SIZES = [64, 96]
SMIT = dict(width=12, depths=(2, 2, 1, 2), heads=(2, 2, 4, 4), window=4)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def monai_swin(**args) -> SwinTransformer:
    sizes = dict(
        embed_dim=12, window_size=(4, 4, 4), patch_size=(2, 2, 2), depths=(2, 2, 2, 1), num_heads=(1, 2, 2, 4)
    )
    return randomise(SwinTransformer(1, spatial_dims=3, **(sizes | args)))  # type: ignore[return-value]


def save_plainly(content: dict, path):
    """As safetensors, with the keys that a pickle of these containers would have: spares a process."""
    flat: dict[str, torch.Tensor] = {}

    def walk(value, way: str) -> None:
        if isinstance(value, torch.Tensor):
            flat[way] = value.detach().clone().contiguous()
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{way}/{key}" if way else key)

    walk(content, "")
    save_file(flat, path)
    return path


def imported(tmp_path, content, **options):
    """Save, import, load: the encoder and the record."""
    file = save_plainly(content, tmp_path / "source.safetensors")
    done = import_checkpoint(file, out=tmp_path / "imported", overwrite=True, **options)
    return ctssl.load(tmp_path / "imported"), done


def agree(encoder, features, size: int) -> None:
    """The maps are those of `features(x)`, on an image without symmetry."""
    x = torch.rand(1, 1, size, size, size)
    with torch.no_grad():
        ours, theirs = encoder(x), features(x)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=0)


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("container, qkv_bias", [("flat", False), ("state_dict", True), ("student", True)])
def test_smit_in_each_of_its_containers(tmp_path, container, qkv_bias):
    state = smit_state(**SMIT, qkv_bias=qkv_bias)
    other = {
        "decoder1.weight": torch.ones(3),
        "head.mlp.0.weight": torch.ones(2, 2),
        "norm.weight": torch.ones(48),
    }
    content = {
        "flat": prefixed(state | other, "module."),
        "state_dict": {
            "state_dict": prefixed(state, "transformer.") | other,
            "optimizer": {"state": {0: torch.ones(2)}},
        },
        "student": {
            "student": prefixed(state, "module.backbone.transformer.") | prefixed(other, "module.backbone."),
            "teacher": prefixed(state, "backbone.transformer."),
        },
    }[container]
    torch.save(
        content, tmp_path / "smit.pt", _use_new_zipfile_serialization=container != "flat"
    )  # the first is of 2022
    done = import_checkpoint(tmp_path / "smit.pt", out=tmp_path / "smit", family="smit")
    encoder = ctssl.load(tmp_path / "smit")
    assert encoder.config["qkv_bias"] is qkv_bias and encoder.config["depths"] == SMIT["depths"]
    for size in SIZES if container == "flat" else [64]:
        agree(encoder, lambda x: smit_features(state, x, window=4), size)
    if container == "state_dict":
        assert done.skipped == {"optimizer": 1}
    assert {entry["action"] for entry in done.keys} >= {"renamed", "changed", "left out"}


@pytest.mark.parametrize("merging", ["1.4", "1.5", "v2"])
def test_a_monai_swinunetr_under_each_merging(tmp_path, merging):
    downsample = {"1.4": OldPatchMerging, "1.5": "merging", "v2": "mergingv2"}[merging]
    theirs = randomise(
        SwinUNETR(
            1,
            3,
            feature_size=12,
            num_heads=(1, 2, 2, 4),
            depths=(2, 1, 1, 1),
            window_size=4,
            downsample=downsample,
        )
    )
    encoder, done = imported(
        tmp_path, {"state_dict": theirs.state_dict()}, family="monai-swinunetr", merging=merging
    )
    for size in SIZES:
        agree(encoder, theirs.swinViT, size)
    wrong = {"1.4": "1.5", "1.5": "1.4", "v2": "1.5"}[merging]
    other, _ = imported(tmp_path, {"state_dict": theirs.state_dict()}, merging=wrong)
    x = torch.rand(1, 1, 64, 64, 64)
    with torch.no_grad():
        assert (other(x)[-1] - theirs.swinViT(x)[-1]).abs().max() > 0.1, "the wrong merging is not to be seen"
    assert {e["how"] for e in done.keys if e["key"].startswith("state_dict/decoder")} == {
        "outside the encoder: decoder"
    }


def test_monais_merging_has_to_be_told(tmp_path):
    file = save_plainly(monai_swin().state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"--merging 1\.4 .* --merging 1\.5"):
        import_checkpoint(file, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", SIZES)
def test_monais_self_supervised_swinvit(tmp_path, size):
    theirs = monai_swin(window_size=(7, 7, 7))
    state = {k.replace("linear", "fc"): v for k, v in theirs.state_dict().items()}
    state |= {
        "norm.weight": torch.ones(96),
        "norm.bias": torch.zeros(96),
        "rotation_head.weight": torch.ones(4, 192),
        "contrastive_head.weight": torch.ones(512, 192),
        "conv.0.weight": torch.ones(96, 192, 3, 3, 3),
    }
    encoder, done = imported(tmp_path, {"epoch": 1, "state_dict": prefixed(state, "module.")}, merging="1.5")
    assert done.family == "monai-swinvit" and encoder.spec.preprocess.window_hu == (-1000, 1000)
    agree(encoder, theirs, size)
    assert {e["key"] for e in done.keys} == {f"state_dict/module.{key}" for key in state}


@pytest.mark.parametrize("prefix", ["backbone.swinViT.", "module.backbone.swinViT.", "encoder."])
def test_swin_unetr_v2_under_prefixes_of_its_own(tmp_path, prefix):
    theirs = monai_swin(use_v2=prefix != "encoder.", patch_norm=prefix == "encoder.")
    state = prefixed(theirs.state_dict(), prefix)
    if prefix == "encoder.":  # the disruptive autoencoders': one more level of layers
        state = {
            k.replace(".0.blocks", ".0.0.blocks").replace(".0.down", ".0.0.down"): v for k, v in state.items()
        }
    encoder, done = imported(tmp_path, {"net": state}, merging="1.5")
    assert encoder.config.get("convs", False) is (prefix != "encoder.") and done.family == "monai-swinunetr"
    for size in SIZES:
        agree(encoder, theirs, size)


def monai_vit(kind: str, size: int):
    """A MONAI ViT of one kind, its last features `(B, N, C)` as a function, what to save, and its options."""
    if kind == "masked":
        net = randomise(MaskedAutoEncoderViT(1, size, 16, 48, 96, 3, 4, decoder_num_layers=1, qkv_bias=True))
        return (
            net,
            lambda x: net.blocks(torch.cat([net.cls_token, net.patch_embedding(x)], 1))[:, 1:],
            net.state_dict(),
        )
    if kind == "autoencoder":
        net = randomise(ViTAutoEnc(1, size, 16, hidden_size=48, mlp_dim=96, num_layers=3, num_heads=4))
        return net, lambda x: net.norm(net(x)[1][-1]), net.state_dict()
    if kind == "unetr":
        whole = randomise(
            UNETR(1, 2, size, feature_size=4, hidden_size=48, mlp_dim=96, num_heads=4, qkv_bias=True)
        )
        return whole, lambda x: whole.vit(x)[0], {"model": whole.state_dict()}
    net = MonaiViT(
        1,
        size,
        16,
        48,
        96,
        3,
        4,
        proj_type="perceptron" if kind == "perceptron" else "conv",
        classification=kind == "class",
        qkv_bias=kind == "class",
    )
    randomise(net)
    skip = int(kind == "class")
    return net, lambda x: net.norm(net(x)[1][-1])[:, skip:], prefixed(net.state_dict(), "module.")


@pytest.mark.parametrize("kind", ["conv", "perceptron", "class", "autoencoder", "masked", "unetr"])
def test_monais_vits(tmp_path, kind):
    for size in SIZES if kind == "conv" else [64]:
        _, features, content = monai_vit(kind, size)
        encoder, done = imported(tmp_path, content, family="monai-vit", heads=4)
        assert encoder.config.get("extra", 0) == int(kind in ("class", "masked"))
        x = torch.rand(2, 1, size, size, size)
        with torch.no_grad():
            if kind == "masked":
                x = x[:1]
            torch.testing.assert_close(
                encoder(x)[-1].flatten(2).transpose(1, 2), features(x), atol=1e-4, rtol=0
            )
        assert done.counts["renamed"] >= 19


@pytest.mark.parametrize(
    "args",
    [
        {},
        dict(reg_tokens=2, init_values=0.5),
        dict(no_embed_class=True, qkv_bias=False),
        dict(class_token=False, global_pool="avg", fc_norm=False),
    ],
)
def test_timms_vits(tmp_path, args):
    for size in SIZES if not args else [64]:
        theirs = randomise(timm_vit(size, **args))
        encoder, done = imported(
            tmp_path, {"model": theirs.state_dict()}, heads=4, spacing_mm=1.5, window_hu=(-1000, 1000)
        )
        assert done.family == "timm-vit"
        x = torch.rand(1, 1, size, size, size)
        with torch.no_grad():
            last = theirs.forward_features(x)[:, theirs.num_prefix_tokens :]
            torch.testing.assert_close(encoder(x)[-1].flatten(2).transpose(1, 2), last, atol=1e-4, rtol=0)
            hidden = theirs.patch_embed(x)
            hidden = theirs.blocks[0](theirs._pos_embed(hidden))[:, theirs.num_prefix_tokens :]
            first = encoder.forward_intermediates(x, indices=[0])[0].flatten(2).transpose(1, 2)
            torch.testing.assert_close(first, hidden, atol=1e-4, rtol=0)
        assert {e["action"] for e in done.keys if "ls1" in e["key"]} <= {"joined"}


@torch.no_grad()
def test_an_attention_and_tokens_without_a_place(tmp_path):
    encoder = randomise(ctssl.ViT(24, depth=2, heads=2, patch=8, grid=(2, 3, 2), maps=2, extra=3))
    x = torch.rand(1, 1, 16, 24, 16)
    assert encoder.attention(x, block=-1).shape == (1, 2, 15, 15) and encoder(x)[0].shape == (1, 24, 2, 3, 2)
    places = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2))[None]
    found = encoder.encode_tokens(encoder.patch_embed(x).flatten(1, 3), places)
    torch.testing.assert_close(found, encoder(x)[-1].flatten(2).transpose(1, 2))
    before = encoder(x)[-1].clone()
    encoder.extra.add_(torch.randn(1, 3, 24))
    assert (encoder(x)[-1] - before).abs().max() > 1e-4, "the extra tokens attend"


def test_what_a_vit_does_not_tell_is_asked_for(tmp_path):
    file = save_plainly(timm_vit(64).state_dict(), tmp_path / "vit.safetensors")
    told = dict(out=tmp_path / "out", heads=4, spacing_mm=1.0, window_hu=(0, 1))
    with pytest.raises(ValueError, match="--heads N"):
        import_checkpoint(file, **(told | {"heads": None}))
    with pytest.raises(ValueError, match="--spacing MM and --window-hu LOW HIGH"):
        import_checkpoint(file, **(told | {"spacing_mm": None}))
    with pytest.raises(ValueError, match="--grid 2 2 2 makes 8"):
        import_checkpoint(file, **told, grid=(2, 2, 2))
    with pytest.raises(ValueError, match="--merging is nothing that timm-vit asks for"):
        import_checkpoint(file, **told, merging="1.4")
    import_checkpoint(file, **told, grid=(4, 2, 8))
    assert ctssl.load(tmp_path / "out").config["grid"] == (4, 2, 8)


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
        ({"norm2.weight": None}, "does not fill the encoder: 1 of .* first norms.2.weight"),
        ({"layers.1.blocks.0.mlp.fc2.bias": None}, "does not fill the encoder"),
        ({"layers.1.blocks.0.attn.relative_position_bias_table": None}, "not whole"),
        ({"layers.0.blocks.0.attn.gate": torch.ones(3)}, "not representable: layers.0.blocks.0.attn.gate"),
        ({"absolute_pos_embed": torch.ones(1, 12, 2, 2, 2)}, "not representable: absolute_pos_embed"),
        ({"norm1.bias": torch.full((24,), torch.nan)}, "NaN"),
        (
            {"layers.2.downsample.reduction.weight": torch.ones(192, 384)},
            r"not representable: .* is \(192, 384\)",
        ),
        ({"patch_embed.proj.weight": torch.ones(12, 3, 2, 2, 2)}, "takes 3 channels"),
        ({"patch_embed.proj.weight": torch.ones(12, 1, 2, 2, 1)}, "ours are cubes"),
        (
            {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(64, 64, dtype=torch.long)},
            "another way",
        ),
        ({"layers.0.blocks.0.attn.logit_scale": torch.ones(1)}, "Swin V2"),
        (
            {"layers.999999999.blocks.0.norm1.weight": torch.ones(1)},
            r"stages \[0, 1, 2, 3, 999999999\]: some are missing",
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
                ValueError, match=f"is no {asked} checkpoint: this looks like .* use --from {family}"
            ):
                import_checkpoint(file, out=tmp_path / "out", family=asked)
    with pytest.raises(ValueError, match="no family is called 'swin'"):
        import_checkpoint(file, out=tmp_path / "out", family="swin")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "state, words",
    [
        ({"layers.0.weight": torch.ones(2)}, "no encoder that ctssl knows: its first keys are"),
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
            r"2 encoders, \['a.', 'b.'\]: .* --root",
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
    with pytest.raises(ValueError, match=r"there are \['online.', 'target.'\]"):
        imported(tmp_path, content, merging="1.5", root="other.")


def test_an_imported_encoder_is_one_like_any_other(tmp_path, labelled, capsys):
    encoder, _ = imported(tmp_path, smit_state(**SMIT, qkv_bias=True))
    x = torch.rand(1, 1, 64, 64, 64)
    for head in set(HEADS) - {"dynunet"}:  # which takes no encoder
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


class Evil:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not(tmp_path):
    content = {"state_dict": {"patch_embed.proj.weight": torch.ones(2)}, "extra": Evil(tmp_path / "created")}
    torch.save(content, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(tmp_path / "created")))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(ValueError, match=r"it asks for \w+\.system|is damaged or no PyTorch"):
            import_checkpoint(tmp_path / name, out=tmp_path / "out")
    assert not (tmp_path / "created").exists() and not (tmp_path / "out").exists()


def test_what_trainers_save_beside_the_weights_does_not_hinder(tmp_path):
    import argparse

    import numpy as np

    weights = {"a.weight": torch.ones(2), "b": torch.ones(3).half()}
    extra = {"args": argparse.Namespace(lr=0.1), "best_acc": np.float64(0.5), "epoch": 3, "names": ["x"]}
    torch.save({"state_dict": weights, **extra}, tmp_path / "file.pt")
    found = read_checkpoint(tmp_path / "file.pt").tensors
    assert (
        set(found) == {"state_dict/a.weight", "state_dict/b"} and found["state_dict/b"].dtype == torch.float16
    )


def bomb(path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", b"\0" * (64 << 20))


def write_zip(path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/array.npy", b"0")


@pytest.mark.parametrize(
    "write, words",
    [
        (bomb, "unpacks to more than it is"),
        (write_zip, "no data.pkl"),
        (lambda p: torch.save({"w": torch.zeros(1).expand(10**10)}, p), r"claim 40000000000 bytes"),
        (lambda p: torch.jit.script(torch.nn.Linear(2, 2)).save(str(p)), "TorchScript"),
        (lambda p: p.write_bytes(b"\x1f\x8b" + b"0" * 99), "gzip"),
        (lambda p: p.write_text("  <!DOCTYPE html>"), "a web page"),
        (lambda p: p.write_bytes(b""), "not a PyTorch checkpoint"),
        (lambda p: p.write_bytes(b"\x80\x02" + bytes(range(256))), "damaged or no PyTorch checkpoint"),
        (lambda p: torch.save({"w": torch.ones(2).to_sparse()}, p), "sparse"),
        (
            lambda p: p.write_bytes((200).to_bytes(8, "little") + b'{"a":' + b"x" * 300),
            "not a whole safetensors",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_files_that_are_no_checkpoint_are_refused_in_words(tmp_path, write, words):
    write(tmp_path / "file.pt")
    with pytest.raises(ValueError, match=words):
        read_checkpoint(tmp_path / "file.pt")


def test_truncated_files_are_refused(tmp_path):
    torch.save({"w": torch.rand(1000)}, tmp_path / "file.pt")
    torch.save({"w": torch.rand(1000)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file({"w": torch.rand(1000)}, tmp_path / "file.safetensors")
    for name in ("file.pt", "old.pt", "file.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="not a whole|damaged or no"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="give a checkpoint"):
        read_checkpoint(tmp_path / "none.pt")


def test_time_and_memory_are_limited(tmp_path, monkeypatch):
    torch.save({"w": torch.rand(16 << 20)}, tmp_path / "file.pt")  # 64 MiB
    with pytest.raises(ValueError, match=r"not open after 0\.05 seconds"):
        read_checkpoint(tmp_path / "file.pt", seconds=0.05)
    if os.path.exists("/proc/self/statm"):
        monkeypatch.setattr(pickles, "SPARE", -3 * (tmp_path / "file.pt").stat().st_size + (8 << 20))
        with pytest.raises(ValueError, match="more memory|want of memory|cannot be read"):
            read_checkpoint(tmp_path / "file.pt")
