"""
A configuration of Envoy for a router with ``[ext_proc]``: three filters, of which the picker's is the second.

    touchstone   names the nodes that may do the work, as metadata
    picker       picks one of them, as a header
    touchstone   checks that it is one of them

Whatever fails, a request is refused: no filter allows failures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from attester.errors import ConfigError
from router.config import RouterConfig
from router.ext_proc_config import ExtProcSection
from router.service.ext_proc.head import DESTINATION, MODEL_HEADER, PICKED_NAMESPACE, SUBSET_NAMESPACE
from router.service.ext_proc.picked import PICKED, STAGE


def write(
    path: Path,
    config: RouterConfig,
    *,
    listen: str,
    picker: str,
    identity: Path,
    client: tuple[Path, Path] | None,
) -> str:
    """
    The text of ``envoy.yaml``.

    Args:
        path: The router's configuration file.
        config: What it holds.
        listen: HOST:PORT on which Envoy serves clients, without TLS.
        picker: HOST:PORT of the endpoint picker, which speaks gRPC without TLS.
        identity: The router's key and certificate, by which nodes that ask for one know who comes.
        client: The certificate and the key that Envoy shows the router, PEM.

    Raises:
        ConfigError: the router serves no other gateway, or Envoy needs a certificate for it.
    """
    section = config.ext_proc
    if section is None:
        raise ConfigError(f"{path} has no section [ext_proc]: the router serves no other gateway")
    host, port = _split(listen)
    picker_host, picker_port = _split(picker)
    own_host, own_port = _split(section.listen)
    by_header = section.model_from == "header"
    return _ENVOY.format(
        host=host,
        port=port,
        limit=section.max_body,
        body_mode="NONE" if by_header else "BUFFERED",
        model=_BY_HEADER if by_header else _BY_BODY,
        destination=DESTINATION,
        subset=SUBSET_NAMESPACE,
        picked=PICKED_NAMESPACE,
        stage=STAGE,
        picked_stage=PICKED,
        idle=round(config.gateway.longest_s),
        wait=round(section.message_timeout_s) + 1,
        picker_host=picker_host,
        picker_port=picker_port,
        own_host=own_host,
        own_port=own_port,
        own_tls=_own_tls(path, section, client),
        identity=identity.absolute(),
    )


def _split(place: str) -> tuple[str, str]:
    host, _, port = place.rpartition(":")
    return host.strip("[]"), port


def _own_tls(path: Path, section: ExtProcSection, client: tuple[Path, Path] | None) -> str:
    if section.tls_certificate is None:
        return ""
    if client is None:
        raise ConfigError(
            "the router's ext_proc asks for a certificate: name one with --certificate and --key"
        )
    authority = (path.parent / section.tls_certificate).absolute()
    certificate, key = (each.absolute() for each in client)
    return _OWN_TLS.format(certificate=certificate, key=key, authority=authority)


_BY_BODY: Final = "The model is read from the body, which Envoy holds meanwhile."
_BY_HEADER: Final = (
    f"The model is read from {MODEL_HEADER}: a filter before this one must always write that from the body."
)
_OWN_TLS: Final = """\
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          alpn_protocols: [h2]
          tls_certificates:
          - certificate_chain: {{filename: {certificate}}}
            private_key: {{filename: {key}}}
          # The router's own certificate, and no other, is believed.
          validation_context: {{trusted_ca: {{filename: {authority}}}}}
"""
_ENVOY: Final = """\
static_resources:
  listeners:
  - name: clients
    address: {{socket_address: {{address: "{host}", port_value: {port}}}}}
    # No more of a body than the router reads.
    per_connection_buffer_limit_bytes: {limit}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: clients
          stream_idle_timeout: {idle}s
          # What clients say in Envoy's own headers counts for nothing.
          use_remote_address: true
          normalize_path: true
          path_with_escaped_slashes_action: REJECT_REQUEST
          common_http_protocol_options: {{headers_with_underscores_action: REJECT_REQUEST}}
          route_config:
            virtual_hosts:
            - name: nodes
              domains: ["*"]
              routes:
              - match: {{prefix: "/"}}
                route: {{cluster: nodes, timeout: 0s, idle_timeout: {idle}s}}
          http_filters:
          - name: touchstone.offer
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
              grpc_service: {{envoy_grpc: {{cluster_name: touchstone}}}}
              failure_mode_allow: false
              status_on_error: {{code: ServiceUnavailable}}
              message_timeout: {wait}s
              # {model}
              processing_mode:
                request_header_mode: SEND
                request_body_mode: {body_mode}
                request_trailer_mode: SKIP
                response_header_mode: SEND
                response_body_mode: NONE
                response_trailer_mode: SKIP
              metadata_options:
                forwarding_namespaces: {{untyped: ["{subset}"]}}
                receiving_namespaces: {{untyped: ["{subset}", "{picked}"]}}
          - name: picker
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
              grpc_service: {{envoy_grpc: {{cluster_name: picker}}}}
              failure_mode_allow: false
              status_on_error: {{code: ServiceUnavailable}}
              message_timeout: {wait}s
              processing_mode:
                request_header_mode: SEND
                request_body_mode: FULL_DUPLEX_STREAMED
                request_trailer_mode: SEND
                response_header_mode: SEND
                response_body_mode: FULL_DUPLEX_STREAMED
                response_trailer_mode: SEND
              metadata_options:
                forwarding_namespaces: {{untyped: ["{subset}", "{picked}"]}}
                receiving_namespaces: {{untyped: ["{picked}"]}}
          - name: touchstone.check
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
              grpc_service:
                envoy_grpc: {{cluster_name: touchstone}}
                initial_metadata: [{{key: {stage}, value: {picked_stage}}}]
              failure_mode_allow: false
              status_on_error: {{code: ServiceUnavailable}}
              message_timeout: {wait}s
              processing_mode:
                request_header_mode: SEND
                request_body_mode: NONE
                response_header_mode: SKIP
              metadata_options:
                forwarding_namespaces: {{untyped: ["{subset}", "{picked}"]}}
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: touchstone
    type: STRICT_DNS
    connect_timeout: 3s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
{own_tls}\
    load_assignment:
      cluster_name: touchstone
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: "{own_host}", port_value: {own_port}}}}}}}
  - name: picker
    type: STRICT_DNS
    connect_timeout: 3s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: picker
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: "{picker_host}", port_value: {picker_port}}}}}}}
  - name: nodes
    # Where the header says and nowhere else: this kind of cluster has no other endpoints to fall back on.
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
    original_dst_lb_config: {{use_http_header: true, http_header_name: {destination}}}
    connect_timeout: 3s
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          tls_certificates:
          - certificate_chain: {{filename: {identity}}}
            private_key: {{filename: {identity}}}
          # Nodes have certificates of their own making.  Envoy cannot check which key answers: see what is lost in
          # docs/other-gateways.md.
          validation_context: {{trust_chain_verification: ACCEPT_UNTRUSTED}}
"""
