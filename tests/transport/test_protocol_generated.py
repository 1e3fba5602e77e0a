"""What is generated from medfl.proto says what medfl.proto says."""

from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from medfl.transport.protocol import medfl_pb2

FOLDER = Path(medfl_pb2.__file__).parent


def generated() -> FileDescriptorProto:
    found = FileDescriptorProto()
    found.ParseFromString(medfl_pb2.DESCRIPTOR.serialized_pb)
    return found


def fields(proto: FileDescriptorProto) -> dict[tuple[str, str], tuple[int, int, int, str]]:
    return {
        (message.name, field.name): (field.number, field.type, field.label, field.type_name)
        for message in proto.message_type
        for field in message.field
    }


def test_the_descriptor_is_that_of_the_proto_file(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
    out = tmp_path / "set"
    assert protoc.main(["protoc", f"-I{FOLDER}", f"--descriptor_set_out={out}", "medfl.proto"]) == 0
    (compiled,) = FileDescriptorSet.FromString(out.read_bytes()).file
    assert fields(compiled) == fields(generated())
    assert [service.name for service in compiled.service] == [service.name for service in generated().service]


def test_every_field_of_the_proto_file_is_generated() -> None:
    """Without a compiler: names and numbers, as they are written."""
    found, message = set[tuple[str, str, int]](), ""
    for line in (FOLDER / "medfl.proto").read_text().splitlines():
        words = line.split("//")[0].replace(";", " ; ").split()
        if words[:1] == ["message"]:
            message = words[1]
        elif message and "=" in words and ";" in words:
            place = words.index("=")
            found.add((message, words[place - 1], int(words[place + 1])))
    assert found == {(owner, name, about[0]) for (owner, name), about in fields(generated()).items()}
    assert len(found) > 20
