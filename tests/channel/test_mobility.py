"""Places, ways and their speeds."""

import numpy as np
import pytest

from channel import ChannelConfig, PathConfig
from channel.mobility import RandomWaypoint, Static, Trajectory, read_trajectories
from channel.process import LinkProcess


def test_places_are_uniform_over_the_ring():
    places = np.array([Static(100.0, 20.0, seed=0, device=d).position_m(3.0) for d in range(5000)])
    r2 = (places**2).sum(axis=1)
    assert r2.min() >= 20.0**2
    assert r2.max() <= 100.0**2
    share = (r2 - 20.0**2) / (100.0**2 - 20.0**2)  # uniform on [0, 1]
    assert abs(share.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 5000)


def test_random_waypoint_has_its_mean_speed():
    """Over long times (v_max - v_min) / ln(v_max / v_min), less than the middle of the range."""
    low, high, steps = 1.0, 10.0, 40_000
    walker = RandomWaypoint(50.0, 0.0, (low, high), seed=0, device=0)
    path = np.array([walker.position_m(t) for t in np.arange(steps) * 0.5])
    speed = np.hypot(*np.diff(path, axis=0).T).sum() / ((steps - 1) * 0.5)
    assert speed == pytest.approx((high - low) / np.log(high / low), rel=0.05)


def test_a_position_does_not_depend_on_what_was_asked_before():
    one = RandomWaypoint(50.0, 0.0, (1.0, 2.0), seed=0, device=3)
    other = RandomWaypoint(50.0, 0.0, (1.0, 2.0), seed=0, device=3)
    one.position_m(1000.0)
    np.testing.assert_array_equal(one.position_m(70.0), other.position_m(70.0))


def test_a_trajectory_is_linear_and_starts_again():
    path = Trajectory([10.0, 12.0, 14.0], [[0, 0], [2, 0], [2, 2]])
    np.testing.assert_allclose(path.position_m(11.0), [1, 0])
    np.testing.assert_allclose(path.position_m(13.0), [2, 1])
    np.testing.assert_allclose(path.position_m(15.0), [1, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomWaypoint(5.0, 0.0, (0.0, 1.0), seed=0, device=0), "0 < v_min <= v_max"),
        (lambda: Trajectory([0.0], [[0, 0]]), "two points or more"),
        (lambda: Trajectory([0.0, 0.0], [[0, 0], [1, 1]]), "must rise from point to point"),
    ],
)
def test_bad_paths_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_devices_follow_the_paths_of_a_file(tmp_path, caplog):
    """Towards the base station the link gets better, in the steps of the file."""
    path = tmp_path / "paths.csv"
    path.write_text("device,time_s,x_m,y_m\na,0,200,0\na,10,20,0\nb,0,0,50\nb,10,0,50\n")
    config = PathConfig(
        scenario="umi", mobility="trajectory", trajectory_file=str(path), cell_radius_m=300.0
    )
    process = LinkProcess(ChannelConfig(snr_db=None, path=config, fading="none"), 3, seed=0)
    np.testing.assert_allclose(process.positions_m(5.0), [[110, 0], [0, 50], [110, 0]])
    # 18 m/s at 3.5 GHz is a Doppler shift of 210 Hz, which no slot of 10 ms can follow.
    caplog.clear()
    LinkProcess(ChannelConfig(snr_db=None, path=config, fading="clarke"), 3, seed=0)
    assert "Doppler shift of 210 Hz: set it to 0.002 s or less" in caplog.text
    path.write_text("device,time_s,x_m\na,0,200\n")
    with pytest.raises(ValueError, match="row 1, must have numbers in the columns device, time_s"):
        read_trajectories(path)
    path.unlink()
    with pytest.raises(ValueError, match="does not exist"):
        read_trajectories(path)


def test_before_its_first_point_a_path_stands_where_it_begins():
    """What is known of a link at the start is older than that; it is not of the path's end."""
    path = Trajectory([0.0, 10.0], [[20.0, 0.0], [1900.0, 0.0]])
    assert path.position_m(-0.01).tolist() == [20.0, 0.0]
