"""Certifying a bundle: its own answers against a reference cloud's on items that no choice has seen."""

from edgewise.jobs.certifying.certify import Certified, certify_with_cloud, certify_with_predictions
from edgewise.jobs.certifying.job import CertifyJob

__all__ = ["Certified", "CertifyJob", "certify_with_cloud", "certify_with_predictions"]
