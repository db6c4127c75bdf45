# tests: [{"stdin": "", "stdout": "main __main__\n"}]
def main():
    print("main", __name__)


if __name__ == "__main__":
    main()
