"""Similar scans and lesions, from tables of `ctssl embed`."""

import json

import numpy as np
import pytest

from ctssl.cli import main
from ctssl.inference.neighbours import Embeddings, nearest


def table(features, scans=None, names=None) -> Embeddings:
    scans = scans or [f"s{k}" for k in range(len(features))]
    values = np.array(features, float)
    return Embeddings(names or scans, scans, values, tuple(f"f{k}" for k in range(values.shape[1])))


def test_the_nearest_are_those_in_the_same_direction_once_standardised():
    """The first feature is large everywhere and says nothing."""
    found = nearest(table([[1000, 1, 0], [1001, 2, 0], [1000, 0, 3], [1001, 0, 4]]), top=1)
    assert [(row["query"], row["found"]) for row in found] == [
        ("s0", "s1"),
        ("s1", "s0"),
        ("s2", "s3"),
        ("s3", "s2"),
    ]
    assert all(row["rank"] == 1 and -1 <= float(row["similarity"]) <= 1 for row in found)


def test_a_row_finds_no_other_row_of_its_scan_and_a_query_finds_all():
    lesions = table(
        [[1, 0], [1, 0.1], [0, 1]], scans=["a", "a", "b"], names=["a, lesion 1", "a, lesion 2", "b"]
    )
    assert [row["found"] for row in nearest(lesions) if row["query"] == "a, lesion 1"] == ["b"]
    asked = nearest(lesions, table([[1, 0]], scans=["a"]), top=2)
    assert [row["found"] for row in asked] == ["a, lesion 1", "a, lesion 2"]


def test_what_cannot_be_searched_is_an_error():
    with pytest.raises(ValueError, match="at least three"):
        nearest(table([[1, 0], [0, 1]]))
    with pytest.raises(ValueError, match="same model"):
        nearest(table(np.eye(3)), table([[1, 2]]))


def test_constant_features_do_not_count():
    rows = nearest(table([[1, 5], [2, 5], [3, 5]]), top=1)
    assert all(np.isfinite(float(row["similarity"])) for row in rows)


def test_columns_in_another_order_are_the_same_and_models_are_not_mixed(tmp_path):
    lines = [
        [scan, "m sha256:1", *np.random.default_rng(k).random(12).round(4)] for k, scan in enumerate("abc")
    ]
    columns = ["scan", "model", *(f"f{k}" for k in range(12))]
    for name, order in (("t", range(14)), ("sorted", np.argsort(columns))):  # f0, f1, f10, f11, f2, ...
        rows = [",".join(str(line[k]) for k in order) for line in [columns, *lines]]
        (tmp_path / f"{name}.csv").write_text("\n".join(rows) + "\n")
    one, two = (Embeddings.read(tmp_path / f"{name}.csv") for name in ("t", "sorted"))
    assert [row["similarity"] for row in nearest(one, two, top=1)] == [1.0] * 3
    other = tmp_path / "other.csv"
    other.write_text((tmp_path / "t.csv").read_text().replace("m sha256:1", "m sha256:2"))
    with pytest.raises(ValueError, match="m sha256:1 and of m sha256:2 do not compare"):
        nearest(one, Embeddings.read(other))
    other.write_text(other.read_text().replace("m sha256:2", "m sha256:1", 1))
    with pytest.raises(ValueError, match="of several models"):
        Embeddings.read(other)


def test_the_command(tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text("scan,label,lesion,f0,f1\na,1,1,1,0\nb,1,1,0.9,0.2\nc,1,1,0,1\n")
    assert main(["similar", str(path), "--top", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["found"] for row in rows][:2] == ["b, label 1, lesion 1", "a, label 1, lesion 1"]
    out = tmp_path / "found.csv"
    assert main(["similar", str(path), "--out", str(out)]) == 0 and out.read_text().startswith(
        "query,rank,found"
    )
    assert main(["similar", str(path), "--out", str(out)]) == 2 and "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,f0\na,1\n", "no columns scan"),
        ("scan,f0\n", "no rows"),
        ("scan,f0\na,x\nb,1\nc,1\n", "line 2"),
        ("scan,f0\na,nan\nb,1\nc,1\n", "not finite"),
    ],
)
def test_a_table_that_is_none(tmp_path, capsys, text, said):
    (tmp_path / "t.csv").write_text(text)
    assert main(["similar", str(tmp_path / "t.csv")]) == 2
    assert said in capsys.readouterr().err
