"""A model of the sections of the CloudWatch agent's configuration that deploy/cloudwatch/agent.json uses.

The agent ignores most unknown keys without a message. The model therefore accepts only keys that the sources below define and that
our file uses. A new section of the file needs a new class here, with its source.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# Sources. FILE: docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch-Agent-Configuration-File-Details.html;
# EMF: .../monitoring/CloudWatch-Agent-PrometheusEC2.html, under "CloudWatch agent configuration";
# SCHEMA: github.com/aws/amazon-cloudwatch-agent, translator/config/schema.json (the agent validates with it at start);
# DATUM: .../AmazonCloudWatch/latest/APIReference/API_MetricDatum.html;
# GROUP: .../AmazonCloudWatchLogs/latest/APIReference/API_CreateLogGroup.html;
# FORMAT: .../monitoring/CloudWatch_Embedded_Metric_Format_Specification.html, under "DimensionSet".


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return pattern


# EMF: the agent uses Go's engine; our patterns use only syntax that both engines share.
Regex = Annotated[str, Field(min_length=1), AfterValidator(_compiles)]
# GROUP: the service refuses other characters and longer names.
LogGroup = Annotated[str, Field(pattern=r"^[.\-_/#A-Za-z0-9]{1,512}$")]
# FORMAT: a name is 1 to 250 characters, and a set has at most 30 names.
DimensionSet = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=250)]], Field(min_length=1, max_length=30)
]
# DATUM: the units without a rate; our gauges and counters need no others.
Unit = Literal[
    "Seconds", "Microseconds", "Milliseconds", "Bytes", "Kilobytes", "Megabytes", "Percent", "Count"
]


class Section(BaseModel):
    """Accepts exactly the declared keys, with values of the declared types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Agent(Section):
    """FILE, "agent section"."""

    omit_hostname: bool


class CollectedFile(Section):
    """FILE, "logs section", under collect_list."""

    file_path: str = Field(pattern=r"^/", max_length=4096)
    log_group_name: LogGroup
    # FILE: {instance_id}, {hostname}, {local_hostname} and {ip_address} are replaced, other braces are not.
    log_stream_name: str = Field(
        pattern=r"^([^{}:*]|\{(instance_id|hostname|local_hostname|ip_address)\})+$", max_length=512
    )
    # FILE: the agent knows these of strftime's symbols; %f is the fraction of a second.
    timestamp_format: str = Field(pattern=r"^([^%]|%[YymdBbAHIMSpfzZ-])+$", max_length=4096)
    # SCHEMA: other zones are refused.
    timezone: Literal["Local", "LOCAL", "UTC"]


class CollectedFiles(Section):
    """SCHEMA, logsFilesDefinition."""

    collect_list: list[CollectedFile] = Field(min_length=1, max_length=16384)


class LogsCollected(Section):
    """FILE, "logs section"."""

    files: CollectedFiles


class MetricDeclaration(Section):
    """EMF, under metric_declaration; SCHEMA, metricDeclarationDefinition."""

    source_labels: list[str] = Field(min_length=1)
    label_matcher: Regex
    dimensions: list[DimensionSet] = Field(min_length=1)
    metric_selectors: list[Regex] = Field(min_length=1)


class EmfProcessor(Section):
    """EMF, under emf_processor; SCHEMA, emfProcessorDefinition."""

    metric_declaration_dedup: bool
    # DATUM: no colon at the front, which is AWS's own.
    metric_namespace: str = Field(pattern=r"^[A-Za-z0-9._\-/#]{1,255}$")
    metric_unit: dict[str, Unit]
    metric_declaration: list[MetricDeclaration] = Field(min_length=1)


class Scraped(Section):
    """EMF, under prometheus."""

    # EMF: a file, or `env:` with the variable that holds the scrape configuration.
    prometheus_config_path: str = Field(pattern=r"^(env:[A-Z_]+|/.+)$")
    log_group_name: LogGroup
    emf_processor: EmfProcessor


class MetricsCollected(Section):
    """EMF: Prometheus belongs to `logs`, because its metrics travel as log events."""

    prometheus: Scraped


class Logs(Section):
    """FILE, "logs section"."""

    # SCHEMA, timeIntervalDefinition.
    force_flush_interval: int = Field(ge=1, le=172800)
    logs_collected: LogsCollected
    metrics_collected: MetricsCollected


class AgentConfiguration(Section):
    """The whole file."""

    agent: Agent
    logs: Logs
