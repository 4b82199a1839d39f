"""An S3 store for tests: moto's server in a process of its own, that can be killed and that knows who may do what.

Run as a program it is that process; it ends with its input.
"""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

BUCKET = "bucket"
READ_ONLY = {"Effect": "Allow", "Action": ["s3:Get*", "s3:List*"], "Resource": "*"}


class S3Server:
    """The store: one empty bucket."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "s3.log").open("w"),
            text=True,
        )
        assert self.process.stdout is not None
        port = next(line for line in self.process.stdout if line.strip().isdecimal())
        self.endpoint = f"http://127.0.0.1:{int(port)}"
        self.client("s3").create_bucket(Bucket=BUCKET)

    def environment(
        self, cache: Path, key: str = "somebody", secret: str = "secret"
    ) -> dict[str, str]:
        """What a process needs to reach the store, with copies of runs in `cache`."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "XDG_CACHE_HOME": str(cache),
        }

    def client(self, service: str) -> Any:
        """boto3's client of one service of the store."""
        import boto3

        keys = {"aws_access_key_id": "owner", "aws_secret_access_key": "owner"}
        return boto3.client(service, endpoint_url=self.endpoint, region_name="us-east-1", **keys)

    def objects(self, prefix: str) -> dict[str, int]:
        """The bytes of every object below `prefix`, by the rest of its key."""
        found = (
            self.client("s3")
            .list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/")
            .get("Contents", [])
        )
        return {one["Key"].removeprefix(f"{prefix}/"): one["Size"] for one in found}

    def read_only_keys(self) -> tuple[str, str]:
        """The keys of a user who may read and not write; from now on the store asks everybody who they are."""
        iam = self.client("iam")
        iam.create_user(UserName="reader")
        policy = json.dumps({"Version": "2012-10-17", "Statement": [READ_ONLY]})
        iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        self.let_in(self.endpoint, known_only=True)
        return key["AccessKeyId"], key["SecretAccessKey"]

    @staticmethod
    def let_in(endpoint: str, *, known_only: bool) -> None:
        """Whether the store at `endpoint` asks everybody who they are: it knows nobody but whom it made a key for."""
        url, plain = f"{endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        after = b"0" if known_only else b"inf"
        urllib.request.urlopen(urllib.request.Request(url, data=after, headers=plain)).close()

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


def _serve() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    _serve()
