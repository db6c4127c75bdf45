"""What rewards are asked of elsewhere: a service over HTTP, and a reward model."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Service:
    """Answers as it is told, in turn; the last answer stays. Remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any, dict[str, str], float]] = []
        self.asked: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.respond: Callable[[Any], Any] | None = None
        """In place of `answers`: what to answer to a body."""
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.asked.append(json.loads(body))
                service.headers.append(dict(self.headers))
                if service.respond is not None:
                    service.answers = [(200, service.respond(service.asked[-1]), {}, 0.0)]
                answers = service.answers
                status, said, headers, wait = answers.pop(0) if len(answers) > 1 else answers[0]
                time.sleep(wait)
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/score"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def says(self, said: Any, status: int = 200, wait: float = 0.0, **headers: str) -> None:
        self.answers.append(
            (status, said, {k.replace("_", "-"): v for k, v in headers.items()}, wait)
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def make_reward_model(tokenizer: Path, folder: Path) -> Path:
    """A tiny sequence-classification model with random weights and one output."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForSequenceClassification

    torch.manual_seed(5)
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_labels=1,
        initializer_range=0.3,
    )
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder
