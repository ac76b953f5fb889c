"""The stamp of a shifted scan."""

import ctssl
from ctssl.shifts import stamps


def test_stamps_are_short_and_tell_what_differs():
    several = dict.fromkeys(ctssl.shifts.SHIFTS, 5)
    long = stamps.make_stamp(stamps.combined_name(several), 10**30, "a" * 64)
    assert len(long) <= 79 and long != stamps.make_stamp(stamps.combined_name(several), 10**30 + 1, "a" * 64)
    assert (
        stamps.combined_name({"thickness": 4, "dose": 2})
        == stamps.combined_name({"dose": 2, "thickness": 4})
        == "dose-2+thickness-4"
    )
    for digits in range(40):
        heads = {
            stamps.make_stamp("dose-2", 10**digits, scan).rpartition(" of ")[0] for scan in ("a" * 64, "")
        }
        assert len(heads) == 1, digits
    one = stamps.make_stamp("dose-2", 0, "a" * 64)
    others = {
        "other shifts": ("dose-3", 0, "a" * 64),
        "seed": ("dose-2", 1, "a" * 64),
        "another scan": ("dose-2", 0, "b" * 64),
    }
    for words, other in others.items():
        assert words in stamps.describe_difference(stamps.make_stamp(*other), one)
    assert "version" in stamps.describe_difference(
        one.replace(" by ", " by 1"), one
    ) and "no valid stamp" in stamps.describe_difference("", one)
    assert stamps.describe_difference(one, one) == ""
