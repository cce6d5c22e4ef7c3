"""`cspine phantom`: bad arguments are named, and nothing is written for them."""

import pytest

from cspine_kit.cli import main


@pytest.mark.parametrize("hostile", [[], ["--hostile"]])
@pytest.mark.parametrize(
    ("option", "value"),
    [("seed", "-1"), ("masked", "1.5"), ("boxed", "-0.1"), ("studies", "0"), ("size", "8")],
)
def test_a_value_out_of_range_is_named(tmp_path, capsys, option, value, hostile):
    out = tmp_path / "c"
    assert main(["phantom", "--out", str(out), f"--{option}", value, *hostile]) == 1
    message = capsys.readouterr().err
    assert option in message
    assert value in message
    assert not out.exists()


@pytest.mark.parametrize("hostile", [[], ["--hostile"]])
def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys, hostile):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["phantom", "--out", str(tmp_path), *hostile]) == 1
    assert "mine.txt" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
