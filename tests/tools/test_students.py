"""The table of students: what is trained and measured, once each, and how seeds are summed up."""

import json
import os

import pytest

from lite3r_jax.attention.plan import trained_alike
from lite3r_jax.attention.presets import change_plan, parse_plan
from lite3r_jax.attention.settings import parse_call, parse_settings
from lite3r_jax.attention.speed3r import Speed3R
from lite3r_jax.evaluation.variants import Variant
from lite3r_jax.experiment import from_config
from lite3r_jax.recipes import vggt
from lite3r_jax.runs import train
from tools import students


@pytest.mark.parametrize("variant", students.ROWS.values())
def test_every_row_is_a_recipe_for_the_small_teacher(variant):
    settings = from_config(vggt.get_config(variant).to_dict())
    assert settings.weights == "vggt-tiny" and settings.distill.student_plan()


def test_rows_of_other_settings_are_students_that_may_have_them():
    for trained, attention in students.AFTER_TRAINING.values():
        of = from_config(vggt.get_config(students.ROWS[trained]).to_dict()).distill.plan
        settings = parse_settings(Speed3R, parse_call(attention, "row")[1], attention)
        assert trained_alike(parse_plan(of), parse_plan(change_plan(of, **settings)))
    assert not students.AFTER_TRAINING.keys() & students.ROWS.keys()


def test_a_cell_has_the_mean_and_the_range_of_its_seeds():
    entries = [
        {"work": 0.25, "metrics": {"sky": {"abs_rel": value}}, "minutes": 3}
        for value in (0.1, 0.2, 0.6)
    ]
    one = {"work": 1, "metrics": {"sky": {"abs_rel": 0.25, "auc_30": 0.5}}}
    lines = students.table({"teacher": [one], "a: b": entries}, "sky").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    heads = cells[0]
    column = heads.index("AbsRel")
    assert [row[column] for row in cells[2:]] == ["0.2500", "0.3000 [0.1000, 0.6000]"]
    assert [row[heads.index("work")] for row in cells[2:]] == ["1.00", "0.25"]
    assert [row[heads.index("AUC@30")] for row in cells[2:]] == ["0.500", ""]
    assert [row[heads.index("minutes")] for row in cells[2:]] == ["", "3.0"]
    assert students.spread([0.25, 0.25004, 0.25], 4) == "0.2500"
    assert {len(row) for row in cells} == {len(heads)}


def test_gains_are_paired_by_scenes_and_the_mean_of_seeds():
    def entries(*seeds, **more):
        scenes = [{name: values for name, _ in students.PAIRED.values()} for values in seeds]
        return [{"metrics": {"sky": {"scenes": values}}} | more for values in scenes]

    results = {
        "teacher: float32": entries([0.0, 0.0, 0.0]),
        "a, before: fp8_dynamic": entries([2.0, 6.0, 10.0]),
        "a: fp8_dynamic": entries(
            [0.5, 4.5, 8.5], [0.0, 4.0, 8.0], before="a, before: fp8_dynamic"
        ),
        "b, before: fp8_dynamic": entries([2.5, 5.5, 9.5]),  # has another plan
        "b: fp8_dynamic": entries([1.5, 4.5, 8.5], before="b, before: fp8_dynamic"),
        "recipe: fp8_dynamic": entries([0.5, 4.5, 8.5], before="a, before: fp8_dynamic"),
    }
    lines = [line.strip("| ").split(" | ") for line in students.gains(results, "sky").splitlines()]
    of_teacher = [line for line in lines[2:] if line[1] == "teacher"]
    assert [line[0] for line in of_teacher] == list(results)[1:]
    assert of_teacher[1][2].startswith("+4.2500 [")
    assert [line[:3] for line in lines[2:] if line[1] != "teacher"] == [
        ["a: fp8_dynamic", "before", "-1.7500 [-1.7500, -1.7500]"],
        ["a: fp8_dynamic", "recipe", "-0.2500 [-0.2500, -0.2500]"],
        ["b: fp8_dynamic", "before", "-1.0000 [-1.0000, -1.0000]"],
        ["recipe: fp8_dynamic", "before", "-1.5000 [-1.5000, -1.5000]"],
    ]


def test_the_chart_has_quality_over_work_for_what_is_trained_and_what_is_not():
    def entry(work, auc, **more):
        return {"work": work, "metrics": {"sky": {"auc_30": auc}}, **more}

    results = {
        "teacher: float32": [entry(1, 0.5)],
        "teacher: fp8_dynamic": [entry(1, 0.1)],
        "dense+merge: float32": [entry(0.5, 0.2)],
        "a, before: float32": [entry(0.25, 0.3)],
        "a: float32": [entry(0.25, 0.4, parameters=3), entry(0.25, 0.5, parameters=3)],
    }
    drawn = {series.name: series.points for series in students.chart(results, "sky").series}
    assert drawn == {
        "teacher": ((1, 0.5),),
        "untrained": ((0.25, 0.3), (0.5, 0.2)),
        "trained": ((0.25, pytest.approx(0.45)),),
    }


def test_work_is_counted_for_the_views_of_the_table(tmp_path):
    few, many = (students.Bench("vggt-tiny", ["test"], views, 1) for views in (2, 8))
    stride = Variant("key_views(choose=stride,every=2)", "float32")
    assert few.work(students.DENSE, tmp_path) == many.work(students.DENSE, tmp_path) == 1
    assert few.work(stride, tmp_path) == many.work(stride, tmp_path) == pytest.approx(0.5)
    sparse = Variant("sla_global(keep=0.1,block=4)", "float32")
    assert many.work(sparse, tmp_path) < 0.6 * few.work(sparse, tmp_path)


@pytest.mark.parametrize("row", ["best", "=2", "recipe=0", "recipe=x"])
def test_a_row_that_is_none_is_named(row, tmp_path, capsys):
    assert students.main(["--out", str(tmp_path), "--rows", row]) == 2
    said = capsys.readouterr().err
    assert f"--rows {row!r}: expected NAME or NAME=SEEDS, the name one of recipe," in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_is_there_is_not_done_again(tmp_path, capsys, monkeypatch):
    command = ["--out", str(tmp_path), "--rows", "recipe=1", "--splits", "test"]
    command += ["--views", "2", "--scenes", "2", "--set", "train.loop.steps", "2"]
    command += ["--set", "train.data.buckets", '"1x2x112x112"']
    command += ["--set", "train.loop.evaluate_every", "0"]
    command += ["--plans", "key_views_global(choose=stride,every=2)"]
    assert students.main([word for word in command if word != "recipe=1"]) == 0
    untrained = json.loads((tmp_path / "students.json").read_text())
    assert students.main(command) == 0
    said = capsys.readouterr().out
    rows = json.loads((tmp_path / "students.json").read_text())
    plan = "key_views(choose=stride,every=2)"
    whose = "teacher: {}", f"{plan}: {{}}", "recipe, before: {}", "recipe: {}"
    assert list(rows) == [name.format(how) for name in whose for how in students.PRECISIONS]
    assert untrained == {name: rows[name] for name in list(rows)[:4]}
    assert (tmp_path / "test.svg").read_text().startswith("<svg")
    teacher, _, views, _, _, _, student, _ = (entries[0] for entries in rows.values())
    assert teacher["work"] == 1 and views["work"] == pytest.approx(0.5) and student["work"] > 0
    assert "teacher_abs_rel" not in teacher["metrics"]["test"]
    assert 0 < student["metrics"]["test"]["teacher_abs_rel"] < teacher["metrics"]["test"]["abs_rel"]
    assert student["parameters"] > 0 and student["minutes"] > 0
    assert students.table(rows, "test") in said and students.gains(rows, "test") in said

    folder = tmp_path / "recipe" / "0"
    before = {path: os.stat(path).st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(train, "run", lambda _: pytest.fail("trained again"))
    assert students.main(command) == 0
    assert before == {path: os.stat(path).st_mtime_ns for path in before}
    assert json.loads((tmp_path / "students.json").read_text()) == rows

    assert students.main([*command, "--refine"]) == 0
    refined = json.loads((tmp_path / "students.json").read_text())
    assert set(refined) - set(rows) == {
        f"{row}: {how}+refine" for row in ("teacher", plan, "recipe") for how in students.PRECISIONS
    }
    assert {name: refined[name] for name in rows} == rows
