from jaxlm.cli import main

main()
