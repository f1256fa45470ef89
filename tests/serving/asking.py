"""What tests of routes share: questions, and what a refusal looks like."""

QUERY = "red running shoes"
TEXTS = ["blue cotton shirt", "red running shoes 1", "garden hose", "red shoes"]


def post(client, path, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def raw(client, content, path="/rerank", **headers):
    return client.post(path, content=content, headers={"content-type": "application/json"} | headers)


def refused(answer, status, *parts):
    """An error is one line of JSON that names what is wrong."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    if answer.request.url.path == "/v1/embeddings":
        body = {"error": body["error"]["message"], "error_type": body["error"]["type"]}
    assert set(body) == {"error", "error_type"}
    assert "\n" not in body["error"]
    for part in parts:
        assert part in body["error"]
    return body["error_type"]
