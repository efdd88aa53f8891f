"""The web page in front of a controller, for questions about two pictures at a time.

python -m llava.serve.gradio_multi_image --controller http://localhost:21001
"""

from llava.errors import readable_errors
from llava.serve.gradio_web_server import run


def main(argv: list[str] | None = None) -> None:
    run(argv, __doc__, boxes=2, concurrency=8)


if __name__ == "__main__":
    with readable_errors():
        main()
