"""What `meshctl check` looks at: small checks, one list of them before an installation and one after."""
