# Who is woken, and by what: a night that failed, one that found something, and one that did not happen.

resource "google_monitoring_notification_channel" "email" {
  for_each     = var.emails
  display_name = "beamcam: ${each.value}"
  type         = "email"
  labels       = { email_address = each.value }
}

locals {
  channels = [for channel in google_monitoring_notification_channel.email : channel.id]

  night_logs = join(" AND ", [
    "resource.type=\"workflows.googleapis.com/Workflow\"",
    "resource.labels.workflow_id=\"${google_workflows_workflow.night.name}\"",
  ])

  outcomes = {
    failed = {
      title = "the night failed"
      says  = "The run broke off, is not whole, or cannot be judged. The night is taken up again by `gcloud workflows execute ${google_workflows_workflow.night.name} --location=${var.region} --data='{\"date\": \"YYYY-MM-DD\"}'`, with the date that the log line names; it goes on from what is committed. infra/RUNBOOK.md has the causes."
    }
    findings = {
      title = "the audit has found something"
      says  = "The run is whole. Open audit/index.html in its folder in ${google_storage_bucket.runs.url}: its first card is the gravest finding. infra/RUNBOOK.md says what to do."
    }
  }
}

# Counts, for a chart of nights; the alerts below go by the lines themselves, which name the night.
resource "google_logging_metric" "nights" {
  name        = "${var.name}/nights"
  description = "Nights of beamcam by outcome: passed, findings, failed"
  filter      = "${local.night_logs} AND jsonPayload.outcome:*"

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
    labels {
      key        = "outcome"
      value_type = "STRING"
    }
  }

  label_extractors = { outcome = "EXTRACT(jsonPayload.outcome)" }
}

resource "google_monitoring_alert_policy" "outcome" {
  for_each     = local.outcomes
  display_name = "beamcam: ${each.value.title}"
  combiner     = "OR"
  severity     = each.key == "failed" ? "ERROR" : "WARNING"

  conditions {
    display_name = each.value.title
    condition_matched_log {
      filter           = "${local.night_logs} AND jsonPayload.outcome=\"${each.key}\""
      label_extractors = { night = "EXTRACT(jsonPayload.night)" }
    }
  }

  alert_strategy {
    auto_close = "604800s"
    notification_rate_limit {
      period = "300s"
    }
  }

  notification_channels = local.channels

  documentation {
    mime_type = "text/markdown"
    content   = each.value.says
  }
}

resource "google_monitoring_alert_policy" "missing" {
  display_name = "beamcam: no night has begun"
  combiner     = "OR"
  severity     = "ERROR"

  conditions {
    display_name = "no night in 25 hours"
    condition_threshold {
      filter                  = "metric.type=\"workflows.googleapis.com/started_execution_count\" AND resource.type=\"workflows.googleapis.com/Workflow\" AND resource.labels.workflow_id=\"${google_workflows_workflow.night.name}\""
      comparison              = "COMPARISON_LT"
      threshold_value         = 1
      duration                = "300s" # without one, missing data would not count
      evaluation_missing_data = "EVALUATION_MISSING_DATA_ACTIVE"

      aggregations {
        alignment_period     = "90000s"
        per_series_aligner   = "ALIGN_SUM"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }

  notification_channels = local.channels

  documentation {
    mime_type = "text/markdown"
    content   = "Cloud Scheduler has not begun a night: look at the log of its job ${google_cloud_scheduler_job.night.name}, and at the executions of the workflow ${google_workflows_workflow.night.name}."
  }
}
