"""Image names in plain lists, compose files, Kubernetes manifests, and kubectl's list of pods."""

import contextlib
import json
from collections.abc import Mapping

import pytest
from hubcache.cli import yaml_documents
from hubcache.cli.image_lists import ImageListError, images_of_pods, read_image_list
from hubcache.cli.yaml_documents import MAX_BYTES
from hypothesis import given, settings
from hypothesis import strategies as st

DIGEST = "sha256:" + "a" * 64
NAMES = st.lists(
    st.from_regex(r"(ghcr\.io/)?[a-z]{1,8}/[a-z]{1,8}(:[a-z0-9]{1,5})?", fullmatch=True),
    min_size=1,
    max_size=5,
    unique=True,
)


def read(text: str, environment: Mapping[str, str] | None = None) -> list[str]:
    return read_image_list(text, "list", environment or {})


def test_plain_list_has_an_image_a_line_and_comments() -> None:
    text = f"# base images\ndebian:12\n\n  ghcr.io/owner/name:v1  # ours\n- redis\nalpine@{DIGEST}\ndebian:12\n"
    assert read(text) == ["debian:12", "ghcr.io/owner/name:v1", "redis", f"alpine@{DIGEST}"]


@pytest.mark.parametrize("text", ["Debian\n", "debian:12\nnot an image\n", "http://example.com/x\n", "a:b:c\n"])
def test_malformed_name_in_a_plain_list_is_an_error_with_its_line(text: str) -> None:
    with pytest.raises(ImageListError, match=r"^list: line \d: .* is not the name of an image"):
        read(text)


@pytest.mark.parametrize("text", ["", "# nothing\n", "services: {}\n", "services:\n  web:\n    build: .\n", "---\n"])
def test_text_without_images_is_an_error(text: str) -> None:
    with pytest.raises(ImageListError, match="it names no images"):
        read(text)


def test_compose_file_names_the_images_of_its_services() -> None:
    text = """
x-base: &base
  image: redis:7
  restart: always
services:
  web:
    image: "nginx:${TAG:-1.27}"
    build: .
  cache:
    <<: *base
  other: {<<: [*base], image: ghcr.io/o/n:$VERSION}
  built: {build: .}
"""
    assert read(text, {"VERSION": "v2"}) == ["nginx:1.27", "redis:7", "ghcr.io/o/n:v2"]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("a:${TAG}", "a:1"),
        ("a:${TAG-2}", "a:1"),
        ("a:${EMPTY-2}x", "a:x"),
        ("a:${EMPTY:-2}", "a:2"),
        ("a:${TAG:+3}", "a:3"),
        ("a:b${NONE+3}", "a:b"),
        ("a:${TAG?needed}", "a:1"),
    ],
)
def test_variable_of_a_compose_file_gets_its_value_or_its_default(image: str, expected: str) -> None:
    assert read(f"services:\n  a:\n    image: {image}\n", {"TAG": "1", "EMPTY": ""}) == [expected]


@pytest.mark.parametrize("image", ["a:${TAG}", "a:$TAG", "a:${TAG:?needed}"])
def test_variable_without_a_value_is_an_error(image: str) -> None:
    with pytest.raises(ImageListError, match=r"the variable TAG of image .* is not set"):
        read(f"services:\n  a:\n    image: {image}\n")


def test_manifests_name_the_images_of_all_containers() -> None:
    text = """
apiVersion: batch/v1
kind: CronJob
spec:
  jobTemplate:
    spec:
      template:
        spec:
          initContainers: [{name: i, image: "busybox:1"}]
          containers:
          - {name: c, image: ghcr.io/o/n:1, env: [{name: image, value: no/image}]}
          volumes:
          - {name: v, image: {reference: quay.io/o/volume:1}}
          - {name: w, emptyDir: {}}
---
apiVersion: v1
kind: ConfigMap
data:
  image: not/an-image-of-a-pod
---
# a comment
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  spec:
    ephemeralContainers: [{image: debug:1}]
    containers: [{image: ghcr.io/o/n:1}]
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
spec: {containers: [{image: schema}]}
"""
    assert read(text) == ["ghcr.io/o/n:1", "busybox:1", "quay.io/o/volume:1", "debug:1"]


def test_json_is_read_as_yaml_is() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"image": "debian:12"}], "priority": 3}}
    assert read(json.dumps(pod)) == ["debian:12"]
    assert read('["debian:12", "redis"]') == ["debian:12", "redis"]
    assert read("{apiVersion: v1, spec: {containers: [{image: redis}]}}") == ["redis"], "YAML in flow style"


def test_document_of_another_kind_is_an_error() -> None:
    with pytest.raises(ImageListError, match="neither a compose file"):
        read("image:\n  repository: nginx\n  tag: '1'\n")


def test_yaml_that_cannot_be_parsed_is_an_error_with_its_line() -> None:
    with pytest.raises(ImageListError, match=r"^list: line 7: not YAML"):
        read("apiVersion: v1\nspec: {}\n---\napiVersion: v1\nimage: {{ .Values.image }}\nkind: Pod\n  spec: [\n")


# -- hostile texts ---------------------------------------------------------------------------------------------------


def test_nested_aliases_are_read_once_each() -> None:
    """Expanded, this document has 9**40 images."""
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 41)]
    text = "\n".join(
        ["apiVersion: v1", "a0: &a0 {containers: [{image: debian:12}]}", *levels, "spec: {containers: [{image: x}]}"]
    )
    assert sorted(read(text)) == ["debian:12", "x"]


def test_alias_to_its_own_container_ends() -> None:
    assert read("apiVersion: v1\nspec: &a\n  containers: [{image: x}]\n  again: *a\n") == ["x"]
    with pytest.raises(ImageListError):
        read("services: &a\n  web: *a\n  <<: *a\nimage: x\n")


def test_number_of_merged_entries_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_documents, "MAX_MERGED", 50)
    base = "x: &x {" + ", ".join(f"k{n}: v" for n in range(20)) + "}\nservices:\n"
    services = [f"  s{n}: {{<<: *x, image: 'n:{n}'}}" for n in range(3)]
    assert len(read(base + "\n".join(services[:2]) + "\n")) == 2
    with pytest.raises(ImageListError, match="merge keys copy more than 50 entries"):
        read(base + "\n".join(services) + "\n")


@pytest.mark.parametrize("text", ["[" * 5000 + "image", "{" * 5000 + "image", "image:\n" + "- " * 5000 + "x"])
def test_deep_nesting_is_an_error(text: str) -> None:
    with pytest.raises(ImageListError):
        read(text)


def test_large_text_is_an_error() -> None:
    with pytest.raises(ImageListError, match="it has more than"):
        read("services:\n" + "#" * yaml_documents.MAX_BYTES)


def test_tag_creates_no_object() -> None:
    with pytest.raises(ImageListError):
        read("apiVersion: v1\nimage: !!python/object/apply:os.system ['false']\n")


@given(st.text())
def test_every_text_is_a_list_or_an_error(text: str) -> None:
    with contextlib.suppress(ImageListError):
        assert read(text)


@given(st.text(alphabet="image:{}[]&*<>-'\"\n #|$!%", max_size=60))
def test_every_text_of_yaml_characters_is_a_list_or_an_error(text: str) -> None:
    with contextlib.suppress(ImageListError):
        assert read("services:\n" + text)


@settings(max_examples=25)
@given(NAMES)
def test_names_survive_every_format(names: list[str]) -> None:
    containers = [{"name": "c", "image": name} for name in names]
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": containers}}
    compose = {"services": {f"s{n}": {"image": name} for n, name in enumerate(names)}}
    lines = "services:\n" + "".join(f"  s{n}:\n    image: {name}\n" for n, name in enumerate(names))
    for text in ("\n".join(names), json.dumps(pod), json.dumps(compose), lines):
        assert read(text) == names


# -- pods ------------------------------------------------------------------------------------------------------------


def test_pods_name_their_images_and_the_digests_that_run() -> None:
    pods = {
        "items": [
            {
                "spec": {"containers": [{"image": "nginx:1"}], "initContainers": [{"image": "sidecar:1"}]},
                "status": {
                    "containerStatuses": [{"image": "nginx:1", "imageID": f"docker.io/library/nginx@{DIGEST}"}],
                    "initContainerStatuses": [{"imageID": f"docker-pullable://sidecar@{DIGEST}"}, {"imageID": ""}],
                },
            },
            {"spec": {"containers": [{"image": "nginx:1"}, {"image": "In Valid"}, {}]}, "status": {}},
            {"status": {"containerStatuses": [{"imageID": DIGEST}, None]}},
            None,
        ]
    }
    found = images_of_pods(json.dumps(pods))
    assert found == ["nginx:1", "sidecar:1", f"docker.io/library/nginx@{DIGEST}", f"sidecar@{DIGEST}"]


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"items": 3}', "["])
def test_output_of_kubectl_without_pods_is_an_error(text: str) -> None:
    with pytest.raises(ImageListError, match="kubectl"):
        images_of_pods(text)


def test_cluster_without_pods_has_no_images() -> None:
    assert images_of_pods('{"items": []}') == []


def test_large_cluster_is_read() -> None:
    """A thousand pods, each with some 20 KB of JSON, are more than a file of a user may have."""
    pod = {"metadata": {"annotations": {"long": "x" * MAX_BYTES}}, "spec": {"containers": [{"image": "nginx:1"}]}}
    assert images_of_pods(json.dumps({"items": [pod]})) == ["nginx:1"]
