"""Option values come from environment variables."""

from hubcache.operate import environment


def test_variable_sets_the_option_of_its_name() -> None:
    found = environment.variables({"HUBCACHE_SIZE": "200G", "HUBCACHE_OFFLINE": " true ", "HUBCACHE_SYNC_RATE": "30"})
    assert found == {"hubcache_size": ["200G"], "hubcache_offline": ["true"], "hubcache_sync_rate": ["30"]}


def test_values_of_a_list_are_separated_by_commas_or_white_space() -> None:
    found = environment.variables({"HUBCACHE_REGISTRIES": "docker.io, ghcr.io\nquay.io=https://quay.example"})
    assert found == {"hubcache_registries": ["docker.io", "ghcr.io", "quay.io=https://quay.example"]}


def test_value_of_a_single_option_keeps_its_commas_and_spaces() -> None:
    assert environment.variables({"HUBCACHE_DIR": "/srv/a b,c"}) == {"hubcache_dir": ["/srv/a b,c"]}


def test_empty_variable_counts_as_unset() -> None:
    assert environment.variables({"HUBCACHE_SIZE": "", "HUBCACHE_PINS": " "}) == {}


def test_options_of_the_command_line_are_omitted() -> None:
    values = {"HUBCACHE_SIZE": "1G", "HUBCACHE_DIR": "/srv"}
    assert environment.variables(values, {"hubcache_size"}) == {"hubcache_dir": ["/srv"]}


def test_other_variables_are_ignored() -> None:
    kubernetes = {"HUBCACHE_PORT": "tcp://10.0.0.1:5000", "HUBCACHE_SERVICE_HOST": "10.0.0.1", "hubcache_size": "1G"}
    assert environment.variables(kubernetes) == {}


def test_assignments_repeat_the_name_for_each_value_of_a_list() -> None:
    values = {"hubcache_pins": ["debian:12", "alpine:3"], "hubcache_size": ["1G"]}
    assert environment.assignments(values) == [
        "hubcache_pins=debian:12",
        "hubcache_pins=alpine:3",
        "hubcache_size=1G",
    ]
