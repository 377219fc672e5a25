"""Prints how many tests passed, failed and were skipped, and exits with 1 if one failed.

    count_tests.py FAILED_STEPS FOLDER

FOLDER holds build event files of `bazel test` (*.json) and JUnit files (*.xml). A step that failed with no failed test
to show for it, such as a build, counts as one.
"""

import json
import pathlib
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections import Counter


def of_junit(path: pathlib.Path) -> Counter:
    counts = Counter()
    for case in ElementTree.parse(path).iter("testcase"):
        tags = {child.tag for child in case}
        counts["failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"] += 1
    return counts


def of_events(path: pathlib.Path) -> Counter:
    results = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if "testResult" in event.get("id", {}) and "testResult" in event:
            identity = event["id"]["testResult"]
            # The last attempt counts.
            results[identity["label"], identity.get("run"), identity.get("shard")] = event["testResult"]
    counts = Counter()
    for result in results.values():
        outputs = {output["name"]: output["uri"] for output in result.get("testActionOutput", [])}
        xml = pathlib.Path(urllib.parse.unquote(urllib.parse.urlsplit(outputs.get("test.xml", "")).path))
        own = of_junit(xml) if xml.is_file() else Counter()
        if result["status"] not in ("PASSED", "FLAKY") and not own["failed"]:
            own["failed"] = 1  # it crashed, or ran out of time
        elif not own:
            own["passed"] = 1
        counts += own
    return counts


def main(failed_steps: str, folder: str) -> int:
    counts = Counter()
    for path in sorted(pathlib.Path(folder).iterdir()):
        counts += of_junit(path) if path.suffix == ".xml" else of_events(path)
    failed = max(counts["failed"], int(failed_steps))
    print(f"{counts['passed']} passed, {failed} failed, {counts['skipped']} skipped")
    return 1 if failed or not counts["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
