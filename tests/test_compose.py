"""The files of `docker compose`. No Docker engine runs here: what can be read of them is checked,
and their commands, environment and topology run in network namespaces instead of containers."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from nodes import Nodes, possible
from ray.scripts.scripts import start
from runs import ROOT, metrics, wait_until

from cluster.config import load

DOCKER = ROOT / "docker"
PLACES = {"head": 0, "learner": 1, "sampler": 2, "job": 0}
"""Which namespace stands for which service"""


def compose() -> dict:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def test_what_reaches_outside_is_on_loopback_only():
    for name, service in compose()["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port} to everybody"


def test_every_node_has_token_shared_memory_and_the_shared_folder():
    services = compose()["services"]
    for name in PLACES:
        service = services[name]
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["secrets"] == ["ray_token"] and "shm_size" in service
        assert "outputs:/cohort/outputs" in service["volumes"]
    assert not any("TOKEN:" in line for line in (DOCKER / "compose.yaml").read_text().splitlines())


def test_whoever_is_waited_for_says_when_it_is_ready():
    services = compose()["services"]
    waited = {each for s in services.values() for each in s.get("depends_on", {})}
    assert waited == {"head", "learner", "sampler", "prometheus"}
    for name in waited:
        assert services[name]["healthcheck"]["test"], name


def test_prometheus_scrapes_the_port_that_each_node_exports():
    [job] = yaml.safe_load((DOCKER / "prometheus.yaml").read_text())["scrape_configs"]
    [targets] = [each["targets"] for each in job["static_configs"]]
    exported = {
        f"{name}:{option.partition('=')[2]}"
        for name, service in compose()["services"].items()
        for option in service.get("command", [])
        if option.startswith("--metrics-export-port=")
    }
    assert set(targets) == exported and len(exported) == 3


def test_files_that_compose_names_are_there():
    services = compose()["services"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (DOCKER / source).exists(), source
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", (DOCKER / "Dockerfile").read_text(), re.M))
    assert {services["head"]["build"]["target"], "cuda"} <= stages
    cuda = yaml.safe_load((DOCKER / "compose.cuda.yaml").read_text())
    assert set(cuda["services"]) == set(PLACES)
    assert subprocess.run(["sh", "-n", str(DOCKER / "smoke.sh")]).returncode == 0


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.cuda.yaml"]])
def test_compose_takes_the_files(files: list[str], tmp_path: Path):
    known, command = DOCKER, ["docker", "compose"]
    if not runs(*command, "version"):
        if not runs("docker-compose", "version"):
            pytest.skip("neither docker compose nor docker-compose is here")
        # The first version lacks two fields of the second.
        known, command = shutil.copytree(DOCKER, tmp_path / "docker"), ["docker-compose"]
        text = (known / "compose.yaml").read_text().replace("name: cohort\n", "")
        text = text.replace("environment: RAY_TOKEN", "file: smoke.sh")
        (known / "compose.yaml").write_text(text)
    for name in files:
        command += ["-f", str(known / name)]
    command += ["config", "-q"]
    done = subprocess.run(command, env={**os.environ, "RAY_TOKEN": "x"}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def runs(*command: str) -> bool:
    return shutil.which(command[0]) is not None and (
        subprocess.run(command, capture_output=True).returncode == 0
    )


def test_a_linter_has_nothing_to_say_of_the_image():
    if not (hadolint := shutil.which("hadolint")):
        pytest.skip("hadolint is not here")
    done = subprocess.run([hadolint, str(DOCKER / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def only(required: str, optional: str = "", **properties: Any) -> dict:
    """An object with these fields and no other; those without a schema of their own are text."""
    names = [*required.split(), *optional.split()]
    known = {name: {"type": "string"} for name in names} | properties
    needed = [*required.split(), *(set(properties) - set(optional.split()))]
    return {
        "type": "object",
        "properties": known,
        "required": needed,
        "additionalProperties": False,
    }


def many(schema: dict) -> dict:
    return {"type": "array", "items": schema, "minItems": 1}


COUNT = {"type": "integer", "minimum": 0}
AMOUNTS = {"type": "object", "additionalProperties": {"type": "string"}}
NEEDS = only("", requests=AMOUNTS, limits=AMOUNTS)
CONTAINER = only(
    "name image",
    "workingDir volumeMounts",
    resources=NEEDS,
    volumeMounts=many(only("name mountPath")),
)
VOLUME = only(
    "name",
    "emptyDir persistentVolumeClaim",
    emptyDir=only("medium sizeLimit"),
    persistentVolumeClaim=only("claimName"),
)
POD = only(
    "",
    "restartPolicy terminationGracePeriodSeconds securityContext volumes",
    terminationGracePeriodSeconds=COUNT,
    securityContext=only(
        "",
        runAsUser=COUNT,
        runAsGroup=COUNT,
        fsGroup=COUNT,
        runAsNonRoot={"type": "boolean"},
    ),
    containers=many(CONTAINER),
    volumes=many(VOLUME),
)
TEMPLATE = only("", spec=POD)
PARAMETERS = {"type": "object", "additionalProperties": {"type": "string"}}
RAYJOB = only(
    "apiVersion kind",
    metadata=only("name"),
    spec=only(
        "entrypoint",
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=COUNT,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        submitterPodTemplate=TEMPLATE,
        rayClusterSpec=only(
            "rayVersion",
            authOptions=only("", mode={"enum": ["token", "disabled"]}),
            headGroupSpec=only("", rayStartParams=PARAMETERS, template=TEMPLATE),
            workerGroupSpecs=many(
                only(
                    "groupName",
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=PARAMETERS,
                    template=TEMPLATE,
                )
            ),
        ),
    ),
)
"""The fields that docker/rayjob.yaml may use and their types, of KubeRay's `ray.io/v1` and of
Kubernetes' pods. A quoted number is text to them and a bare one is not."""


def rayjob() -> dict:
    [_, job] = yaml.safe_load_all((DOCKER / "rayjob.yaml").read_text())
    return job


def test_the_rayjob_has_fields_that_kuberay_knows_and_no_others():
    validator = Draft202012Validator(RAYJOB)
    job = rayjob()
    assert [error.message for error in validator.iter_errors(job)] == []
    cluster = job["spec"]["rayClusterSpec"]
    cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    cluster["headGroupSpec"]["template"]["spec"]["container"] = []
    found = {error.message for error in validator.iter_errors(job)}
    assert found == {
        "0 is not of type 'string'",
        "Additional properties are not allowed ('container' was unexpected)",
    }


def test_the_rayjob_is_the_cluster_of_compose():
    [claim, job] = yaml.safe_load_all((DOCKER / "rayjob.yaml").read_text())
    cluster, services = job["spec"]["rayClusterSpec"], compose()["services"]
    assert cluster["authOptions"]["mode"] == services["head"]["environment"]["RAY_AUTH_MODE"]
    pinned = (ROOT / "requirements-cpu.txt").read_text()
    assert f"ray=={cluster['rayVersion']}\n" in pinned
    groups = {each["groupName"]: each for each in cluster["workerGroupSpecs"]}
    assert [*groups] == ["learner", "sampler"]
    for name, group in {"head": cluster["headGroupSpec"], **groups}.items():
        options = services[name]["command"]
        said = {f"--{key}={value}" for key, value in group["rayStartParams"].items()}
        said = {each.removesuffix("=true") for each in said}
        theirs = {f"--{option.name}".replace("_", "-") for option in start.params}
        assert {each.partition("=")[0] for each in said} <= theirs
        assert said <= set(options), name
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        assert container["image"] == services[name]["image"]
        [shm, outputs] = pod["volumes"]
        assert [each["name"] for each in container["volumeMounts"]] == [shm["name"], "outputs"]
        assert outputs["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        mounted = container["volumeMounts"][1]["mountPath"]
        assert f"outputs:{mounted}" in services[name]["volumes"]
    words = job["spec"]["entrypoint"].split()
    assert words[:4] == ["python", "-m", "cluster", "train"]
    assert (ROOT / words[4]).is_file() and words[5:] == services["job"]["command"][-1:]
    load([str(ROOT / words[4])], words[5:]).config.check()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
def test_the_same_commands_train_on_three_nodes_in_namespaces(tmp_path: Path):
    if why := possible():
        pytest.skip(why)
    nodes, services = Nodes(3, own_folders=True), compose()["services"]
    token = tmp_path / "ray_token"
    token.write_text("a" * 32)
    token.chmod(0o600)
    for index, name in enumerate(nodes.names):  # what compose's own name service does
        hosts = "".join(
            f"{nodes.address(at)} {who}\n" for who, at in PLACES.items() if who != "job"
        )
        own = f"127.0.0.1 localhost\n{nodes.address(index)} {socket.gethostname()}\n"
        (Path("/etc/netns") / name / "hosts").write_text(own + hosts)

    def environment(name: str) -> dict[str, str]:
        kept = {key: value for key, value in nodes.env.items() if key != "RAY_AUTH_TOKEN"}
        given = {**services[name]["environment"], "RAY_AUTH_TOKEN_PATH": str(token)}
        return {**kept, **given, "HOME": str(tmp_path)}

    def command(name: str) -> list[str]:
        words = [
            re.sub(r"\$\{\w+:-(.*)\}", r"\1", word).replace("/cohort/outputs", str(tmp_path))
            for word in services[name]["command"]
        ]
        words[0] = str(Path(sys.executable).with_name(words[0]))
        if words[1] == "start":  # containers have a route, from which Ray knows its address
            words.append(f"--node-ip-address={nodes.address(PLACES[name])}")
        if name == "head":  # and folders of their own
            words.append(f"--temp-dir={nodes.folder}")
        return words

    def healthy(name: str) -> bool:
        _, *check = services[name]["healthcheck"]["test"]
        check[0] = str(Path(sys.executable).with_name(check[0]))
        asked = nodes.run(
            PLACES[name],
            *check,
            env=environment(name),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return asked.wait(60) == 0

    try:
        for name in ("head", "learner", "sampler"):
            with open(tmp_path / f"{name}.log", "w") as log:
                nodes.adopt(
                    PLACES[name],
                    nodes.run(
                        PLACES[name],
                        *command(name),
                        env=environment(name),
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    ),
                )
            wait_until(lambda name=name: healthy(name), 90, f"{name} is healthy")
        job = nodes.run(
            0,
            *command("job"),
            env=environment("job"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        output, _ = job.communicate(timeout=400)
        assert job.returncode == 0, output[-6000:]
        assert "ray job submit --address http://head:8265" in output and "succeeded" in output
        assert [row["step"] for row in metrics(tmp_path / "smoke")] == [1, 2, 3]
        folders = [nodes.folder.with_name(f"{nodes.folder.name}-{index}") for index in range(3)]
        assert all(any(each.glob("session_*")) for each in folders), "a node did not take part"
    finally:
        nodes.close()
