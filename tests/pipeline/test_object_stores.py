import subprocess, sys
from pipeline import storage
def test_gcs(gcs):
    storage.write_bytes(gcs + "/a.bin", b"abc")
    assert storage.read_bytes(gcs + "/a.bin") == b"abc"
    p = subprocess.run([sys.executable, "-c", f"from pipeline import storage; print(storage.read_bytes('{gcs}/a.bin'))"], capture_output=True, text=True, cwd="/work/main")
    assert p.stdout == "b'abc'\n", p.stderr
def test_s3(s3):
    storage.write_bytes(s3 + "/a.bin", b"abc")
    assert storage.read_bytes(s3 + "/a.bin") == b"abc"
    p = subprocess.run([sys.executable, "-c", f"from pipeline import storage; print(storage.read_bytes('{s3}/a.bin'))"], capture_output=True, text=True, cwd="/work/main")
    assert p.stdout == "b'abc'\n", p.stderr
