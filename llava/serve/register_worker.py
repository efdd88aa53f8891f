"""Registers a worker by hand, for one that was started with --no-register.

python -m llava.serve.register_worker --controller http://localhost:21001 --worker-name http://localhost:21002
"""

import argparse

import httpx

from llava.errors import readable_errors
from llava.serve.client import ServiceError
from llava.serve.http_service import check_service


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--controller-address", required=True)
    parser.add_argument("--worker-name", required=True, help="the worker's address")
    parser.add_argument("--check-heart-beat", action="store_true", help="drop the worker when it is not heard of")
    arguments = parser.parse_args(argv)
    message = {
        "worker_name": arguments.worker_name,
        "check_heart_beat": arguments.check_heart_beat,
        "worker_status": None,
    }
    try:
        url = check_service(arguments.controller_address) + "/register_worker"
        response = httpx.post(url, json=message, timeout=30, trust_env=False)
    except httpx.HTTPError as error:
        raise ServiceError(f"the controller at {arguments.controller_address} cannot be reached: {error}") from None
    if response.status_code != 200:
        raise ServiceError(f"the controller refused (status {response.status_code}): {response.text}")
    print(f"registered {arguments.worker_name}")


if __name__ == "__main__":
    with readable_errors():
        main()
