"""Numbers of jobs in addresses: up to nine digits, so that every database takes them."""

from starlette.convertors import IntegerConvertor, register_url_convertor

JOB_ID = "{job_id:job}"  # of a route


class JobConvertor(IntegerConvertor):
    """Starlette's own takes any length, and fails beyond 4300 digits."""

    regex = "[0-9]{1,9}"


register_url_convertor("job", JobConvertor())
