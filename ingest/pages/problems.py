"""Errors as RFC 9457 problem details for programs, and as a small page for people in a browser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ingest.forms.validation import FieldProblem
from ingest.pages.html import error_page, form_page

PROBLEM_JSON = "application/problem+json"
TITLES = {
    400: "The request cannot be read",
    401: "Unauthorized",
    403: "Forbidden",
    404: "There is nothing here",
    405: "Method Not Allowed",
    408: "The request took too long",
    413: "The request is too large",
    415: "Content type not supported",
    422: "This cannot be accepted as it is",
    429: "Too many requests",
    500: "Something went wrong",
    503: "Service Unavailable",
}
IN_PORTUGUESE = {
    400: ("O pedido não pôde ser lido", "Por favor, volte ao formulário e envie de novo."),
    401: ("Acesso não identificado", "Esta página precisa de uma chave."),
    403: ("Acesso não permitido", "Não aceitamos pedidos do seu endereço."),
    404: ("Não há nada aqui", "O endereço não existe."),
    405: ("Não é permitido aqui", "Este endereço não aceita esse tipo de pedido."),
    408: ("O pedido demorou demais", "Sua mensagem não chegou inteira a tempo. Por favor, envie de novo."),
    413: ("A mensagem é grande demais", "Por favor, envie um texto menor."),
    415: ("Tipo de conteúdo não aceito", "Por favor, volte ao formulário e envie de novo."),
    422: ("O formulário não pôde ser aceito", "Por favor, verifique os campos."),
    429: ("Mensagens demais", "Você já nos enviou várias mensagens. Por favor, tente novamente mais tarde."),
    500: ("Algo deu errado", "Por favor, tente novamente em instantes."),
    503: ("Indisponível no momento", "Não pudemos receber sua mensagem agora. Por favor, envie de novo em instantes."),
}
"""Title and detail of the error pages in Portuguese."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An error answer. `type` stays `about:blank`, because the status is enough and `errors` names the fields."""

    status: int
    detail: str
    request_id: str
    errors: Sequence[FieldProblem] = ()
    lead_id: str | None = None
    """Id of a form that Kafka did not acknowledge in time, and that may be in the log all the same."""
    own_words: bool = False
    """Whether an operator wrote the detail, which is then shown untranslated."""

    @property
    def title(self) -> str:
        """The title for the status."""
        return TITLES.get(self.status, "Error")

    def as_json(self) -> bytes:
        """Return the body as problem details (RFC 9457)."""
        document: dict[str, object] = {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "request_id": self.request_id,
        }
        if self.status == 429:
            # The member that clients of the previous system read.
            document["error"] = TITLES[429]
        if self.lead_id is not None:
            document["id"] = self.lead_id
        if self.errors:
            document["errors"] = [{"field": error.field, "detail": error.detail} for error in self.errors]
        return json.dumps(document).encode()

    def as_page(
        self,
        language: str,
        *,
        chosen: bool = False,
        typed: Mapping[str, str] | None = None,
        sent_from: str | None = None,
    ) -> bytes:
        """Return the body as a page. chosen: whether the reader asked for this language.

        typed: the fields of a form that was not accepted, to be resent from this page. sent_from: the address of the
        page whose form could not be read.
        """
        title, detail = self.title, self.detail
        if language == "pt" and self.status in IN_PORTUGUESE:
            title, translated = IN_PORTUGUESE[self.status]
            detail = detail if self.own_words else translated
        if typed is not None:
            return form_page(language, typed, chosen=chosen, title=title, notice=detail)
        # The problems of the fields are listed, and the detail would only repeat them.
        detail = "" if self.errors else detail
        return error_page(language, title, detail, self.errors, chosen=chosen, sent_from=sent_from)
