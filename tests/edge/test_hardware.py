"""What a device computes with, by name."""

import pytest

from edge.hardware import Hardware, hardware_names, load_hardware


@pytest.mark.parametrize("name", hardware_names())
def test_every_profile_that_comes_along_is_whole(name):
    hardware = load_hardware(name)
    assert hardware.name == name
    assert 1e9 < hardware.flops_per_s < 1e13
    assert 1.0 <= hardware.power_w <= 100.0


def test_time_and_energy_follow_from_operations():
    hardware = Hardware("x", flops_per_s=2e9, power_w=3.0, memory_bytes=1e9)
    assert hardware.compute_s(1e10) == pytest.approx(5.0)
    assert hardware.compute_j(1e10) == pytest.approx(15.0)


def test_a_profile_of_ones_own_is_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("flops_per_s = 5\npower_w = 1\nmemory_bytes = 7\n")
    assert load_hardware(str(path)) == Hardware("mine", 5.0, 1.0, 7.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flops_per_s = 0\npower_w = 1\nmemory_bytes = 7\n", "flops_per_s must be > 0"),
        ("power_w = 1\nmemory_bytes = 7\n", "must give the numbers"),
        ("flops_per_s = 'many'\npower_w = 1\nmemory_bytes = 7\n", "must give the numbers"),
        ("flops = [", "must give the numbers"),
    ],
)
def test_a_bad_profile_is_named(text, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_hardware(str(path))


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'laptop'"):
        load_hardware("labtop")
