"""exercises.py takes right answers, worked out here in another way, and no others."""

import math

import pytest

import exercises
from support.files import RunError, UserError

RIGHT = {
    1: 12 * (4 * 17_695 + 2 * 70_779),  # 0.03 · 768² = 17,694.7 and 0.03 · 768 · 3072 = 70,778.9
    2: 100 + math.ceil(600 * (1 - (0.4 / 0.9) ** (1 / 3))),  # v = 1/2 in Eq. (5), solved for t
    3: (0.4 - 0.0) * 0.5 * 1.0,  # (a − y) W x
    4: 2 / 3 * math.log(0.1 / 1.1),  # σ of 0 is a half
}
GOOD = "class Mine:\n    learned, ranked, init = True, True, 0.0\n    def scores(self, W, S):\n"


@pytest.mark.parametrize("exercise", RIGHT)
def test_numbers(exercise):
    assert exercises.check_number(exercise, str(RIGHT[exercise])).startswith("right")
    for wrong, said in ((RIGHT[exercise] + 1, "high"), (RIGHT[exercise] - 1, "low"), ("nan", "no")):
        with pytest.raises(RunError, match=said):
            exercises.check_number(exercise, str(wrong))
    with pytest.raises(UserError, match="number"):
        exercises.check_number(exercise, "many")


@pytest.mark.parametrize("body, said", [
    ("        return S.abs()\n", None),
    ("        return S\n", "fell to first order in all"),  # movement pruning itself
    ("        return S.new_ones(S.shape) / 0\n", None),
])
def test_methods(body, said, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(GOOD + body)
    if said:
        with pytest.raises(RunError, match=said):
            exercises.check_method(file)
    elif "abs" in body:
        assert "right" in exercises.check_method(file)


def test_no_scores_and_no_class(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    learned, ranked = False, True\n"
                    "    def scores(self, W, S):\n        return W\n")
    with pytest.raises(RunError, match="no scores"):
        exercises.check_method(file)
    file.write_text("")
    with pytest.raises(UserError, match="Mine"):
        exercises.check_method(file)
    with pytest.raises(UserError, match="no such file"):
        exercises.check_method(tmp_path / "other.py")


def test_the_command(command):
    done = command("exercises.py", 2, RIGHT[2])
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("right")
    done = command("exercises.py", 2, 5)
    assert done.returncode == 1 and "not yet" in done.stderr and "Traceback" not in done.stderr
    assert command("exercises.py", 9, 5).returncode == 2
