"""Plain manifests, for who has no Helm: renders deploy/chart with its defaults into deploy/kubernetes.

python deploy/render.py            write them
python deploy/render.py --check    exit 1 if they are not what the chart says
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import helm_python as helm
import yaml

HERE = Path(__file__).parent
TARGET = HERE / "kubernetes"
IMAGE = "registry.example.org/dsfs"  # kustomization.yaml is where another one is named

NAMESPACE = """\
# The keeper is privileged, so the namespace has to allow that.
apiVersion: v1
kind: Namespace
metadata:
  name: dsfs
  labels:
    pod-security.kubernetes.io/enforce: privileged
"""

KUSTOMIZATION = """\
# kubectl apply -k deploy/kubernetes, after naming the image that you built from deploy/Dockerfile, and your datasets.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: dsfs
resources:
{resources}
# Its name gets a digest of what it says, so a change of datasets.yaml rolls the servers.
configMapGenerator:
  - name: {datasets}
    files: [datasets.yaml]
images:
  - name: {image}
    newName: {image}
    newTag: "{tag}"
"""


def rendered() -> dict[str, str]:
    """File name to text."""
    with helm.Chart.load(str(HERE / "chart")) as chart:
        tag = chart.metadata["appVersion"]
        templates = chart.render({"image": {"repository": IMAGE}}, name="dsfs", namespace="dsfs")
    files = {"namespace.yaml": NAMESPACE}
    for path, text in sorted(templates.items()):
        if path.endswith(".yaml") and re.search(r"^kind:", text, re.MULTILINE):
            files[Path(path).name] = _plain(text)
    config = yaml.safe_load(files.pop("config.yaml"))
    resources = "\n".join(f"  - {name}" for name in files)
    datasets = config["metadata"]["name"]
    files["kustomization.yaml"] = KUSTOMIZATION.format(resources=resources, datasets=datasets, image=IMAGE, tag=tag)
    return files | {name: f"{text}\n" for name, text in config["data"].items()}


def _plain(text: str) -> str:
    """Without what only Helm has use for."""
    lines = (line.rstrip() for line in text.splitlines() if "managed-by: Helm" not in line)
    return "\n".join(line for line in lines if line) + "\n"


def main(arguments: list[str]) -> int:
    wanted = rendered()
    if arguments == ["--check"]:
        found = {path.name: path.read_text() for path in TARGET.glob("*.yaml")}
        stale = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if stale:
            print(f"not what deploy/chart renders (run python deploy/render.py): {', '.join(stale)}", file=sys.stderr)
        return 1 if stale else 0
    TARGET.mkdir(exist_ok=True)
    for path in TARGET.glob("*.yaml"):
        path.unlink()
    for name, text in wanted.items():
        (TARGET / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
